"""The source runs no data: no pickles, no evaluated text, no shell, no unsafe loader."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest

from tests.support.paths import ROOT

SOURCES = sorted(
    path
    for folder in ("cluster", "captioning", "training", "pipelines", "benchmarks", "examples")
    for path in (ROOT / folder).rglob("*.py")
    if "tests" not in path.relative_to(ROOT).parts
)

UNPICKLERS = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "jsonpickle"}
"""Modules whose files may hold code."""
FORBIDDEN_CALLS = {
    "eval",
    "exec",
    "__import__",
    "os.system",
    "os.popen",
    "subprocess.getoutput",
    "subprocess.getstatusoutput",
    "torch.hub.load",
    "pd.read_pickle",
    "yaml.load",
    "yaml.load_all",
    "yaml.full_load",
    "yaml.unsafe_load",
}
KEYWORDS = {"shell": False, "allow_pickle": False, "weights_only": True}
"""Arguments that may be given with this value only."""
TRUSTING = {"captioning/engines/_chat_settings.py", "captioning/engines/vllm.py", "captioning/engines/_chat_model.py"}
"""Files of engines with the setting `trust_remote_code`, which needs --allow-remote-code."""


def dotted(node: ast.expr) -> str:
    """Return `a.b.c` of such an expression, or an empty string."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def faults(tree: ast.Module, may_trust: bool = False) -> Iterator[str]:
    """Yield each line of a module that could run data, and why."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [name.name for name in node.names] + [getattr(node, "module", None) or ""]
            yield from (f"{node.lineno}: imports {name}" for name in names if UNPICKLERS & set(name.split(".")))
        if not isinstance(node, ast.Call):
            continue
        name, given = dotted(node.func), {each.arg: each.value for each in node.keywords if each.arg}
        if name in FORBIDDEN_CALLS:
            yield f"{node.lineno}: calls {name}"
        if name == "Image.open" and "formats" not in given:
            yield f"{node.lineno}: Image.open without formats, which starts Ghostscript for PostScript"
        if name in ("torch.load", "load_state_dict_from_url") and "weights_only" not in given:
            yield f"{node.lineno}: {name} without weights_only"
        for keyword, allowed in KEYWORDS.items():
            value = given.get(keyword)
            if value is not None and not (isinstance(value, ast.Constant) and value.value is allowed):
                yield f"{node.lineno}: {keyword} is not {allowed}"
        trust = given.get("trust_remote_code")
        if trust is not None and not may_trust and not (isinstance(trust, ast.Constant) and trust.value is False):
            yield f"{node.lineno}: trusts remote code"


@pytest.mark.slow
def test_no_source_runs_data() -> None:
    assert len(SOURCES) > 200
    found = [
        f"{path.relative_to(ROOT)}:{fault}"
        for path in SOURCES
        for fault in faults(ast.parse(path.read_text()), str(path.relative_to(ROOT)) in TRUSTING)
    ]
    assert found == []


def test_only_engines_with_the_setting_trust_code() -> None:
    """Everywhere else the words stand only with the value False."""
    found = {
        str(path.relative_to(ROOT))
        for path in SOURCES
        if "trust_remote_code" in path.read_text().replace("trust_remote_code=False", "")
    }
    allowed = TRUSTING | {
        "captioning/pretrained.py",
        "captioning/clip_weights.py",
        "pipelines/commands/_options.py",
    }
    assert found <= allowed


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from ray import cloudpickle",
        "from ray.cloudpickle import loads",
        "import dill as store",
        "eval('1')",
        "os.system('ls')",
        "subprocess.run('ls', shell=True)",
        "subprocess.run('ls', shell=wanted)",
        "np.load(path, allow_pickle=True)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "yaml.load(text, Loader=yaml.Loader)",
        "yaml.unsafe_load(text)",
        "Image.open(path)",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
    ],
)
def test_the_guard_sees(line: str) -> None:
    assert list(faults(ast.parse(line)))


def test_the_guard_passes_safe_code() -> None:
    lines = (
        "subprocess.run(['ls'], shell=False)",
        "np.load(path)",
        "torch.load(path, weights_only=True)",
        "yaml.safe_load(text)",
        "Image.open(path, formats=('PNG',))",
        "model.eval()",
        "AutoModel.from_pretrained(name, trust_remote_code=False)",
    )
    assert list(faults(ast.parse("\n".join(lines)))) == []
