"""Where it runs: settings from YAML, storage, Ray sessions, plugins and telemetry. Imports no other package of the project."""
