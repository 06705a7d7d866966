"""Settings from YAML, storage, Ray sessions, plug-ins and telemetry. Imports no other package of the project."""
