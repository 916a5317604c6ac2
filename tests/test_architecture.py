"""The rules that hold the files together: who imports whom, importing acts on nothing, and nothing is hidden."""

import ast
import doctest
import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from modules.configuration import AGG_MODULES, SIM_HEADERS

REPOSITORY = Path(__file__).resolve().parent.parent
PACKAGES = sorted(file.parent.name for file in REPOSITORY.glob("*/__init__.py") if file.parent.name != "tests")

LIBRARIES = {"util", "metrics", "modules", "dataloaders"}
# module or package -> what it may import of the project; the longest name that fits a file decides
ALLOWED_IMPORTS = {
    "main_task_retrieval": LIBRARIES | {"engine"},
    "util": {"modules.standard_streams"},
    "metrics": set(),
    "engine": LIBRARIES | {"engine"},
    "engine.arguments": {
        "dataloaders.data_config",
        "engine.flags",
        "engine.recorded_flags",
        "modules.checkpoint",
        "modules.clip_weights",
        "modules.configuration",
        "modules.heads",
        "util",
    },
    "engine.flags": {"dataloaders", "modules"},
    "engine.nonfinite": {"modules.distributed", "modules.whole_files", "util"},
    "engine.output_folder": {"engine.resumption", "modules.checkpoint", "modules.resume", "util"},
    "engine.progress": {"engine.run_log", "util"},
    "engine.provenance": {"engine.flags", "modules.clip_weights", "modules.whole_files"},
    "engine.record": {"engine.evaluation", "engine.provenance", "engine.run_files", "modules"},
    "engine.recorded_flags": {"engine.flags", "modules.checkpoint", "modules.clip_weights"},
    "engine.resumption": {"dataloaders", "engine.flags", "modules.checkpoint"},
    "engine.run_files": {"metrics", "modules.checkpoint", "modules.whole_files"},
    "engine.run_log": {"modules.whole_files"},
    "engine.signals": {"util"},
    "dataloaders": {"dataloaders"},
    "dataloaders.annotation_files": {"dataloaders.annotations"},
    "dataloaders.annotations": {"dataloaders.video_files", "dataloaders.video_lookup"},
    "dataloaders.video_files": set(),
    "dataloaders.video_lookup": {"dataloaders.video_files"},
    "dataloaders.data_config": {
        "dataloaders.annotations",
        "dataloaders.frame_cache",
        "dataloaders.rawvideo_util",
        "dataloaders.unreadable",
    },
    "dataloaders.fingerprint": {"dataloaders.annotations"},
    "dataloaders.unreadable": {"dataloaders.rawvideo_util"},
    "dataloaders.rawvideo_util": {
        "dataloaders.frame_sampling",
        "dataloaders.media_files",
        "dataloaders.video_decoding",
    },
    "dataloaders.frame_sampling": set(),
    "dataloaders.media_files": set(),
    "dataloaders.video_damage": set(),
    "dataloaders.video_decoding": {
        "dataloaders.frame_sampling",
        "dataloaders.media_files",
        "dataloaders.video_damage",
    },
    "dataloaders.video_loader": {"dataloaders.unreadable", "dataloaders.worker_failures"},
    "dataloaders.worker_failures": set(),
    "dataloaders.worker_pool": set(),
    "modules": {"modules"},
    "modules.distributed": set(),
    "modules.explanation": {"modules.tokenization_clip"},
    "modules.file_utils": {"modules.whole_files"},
    "modules.heads": {"modules.explanation", "modules.losses", "modules.module_cross", "modules.token_interaction"},
    "modules.losses": {"modules.token_interaction"},
    "modules.optimization": set(),
    "modules.post_processing": set(),
    "modules.tensor_files": {"modules.tensor_pickle"},
    "modules.tensor_pickle": set(),
    "modules.interrupts": set(),
    "modules.standard_streams": set(),
    "modules.token_interaction": set(),
    "modules.whole_files": set(),
    # flags, and their values in a training, are read in the engine alone
    "video_search": {"video_search", "modules", "dataloaders", "engine.flags", "engine.recorded_flags"},
    "video_search.reading": {  # by processes without a model
        "dataloaders.rawvideo_util",
        "dataloaders.video_damage",
        "dataloaders.worker_pool",
    },
    "video_search.index_files": {"modules.whole_files", "video_search.stores"},
    "video_search.stored_rows": {"video_search.index_files"},
    "video_search.stores": {"video_search.vectors"},
    "video_search.vectors": set(),
    "video_search.web": {"video_search.web", "dataloaders.rawvideo_util"},
    "video_search.web.decoding": {"dataloaders.rawvideo_util"},  # by processes without a model
    "scripts": LIBRARIES | {"scripts", "engine", "video_search"},
    "scripts.embed": {
        "dataloaders",
        "modules.interrupts",
        "modules.standard_streams",
        "modules.whole_files",
        "video_search",
    },
    "scripts.index": {
        "dataloaders.unreadable",
        "dataloaders.video_files",
        "modules.interrupts",
        "modules.standard_streams",
        "video_search",
    },
    "scripts.search": {"dataloaders.rawvideo_util", "modules.interrupts", "modules.standard_streams", "video_search"},
    "scripts.serve": {"modules.standard_streams", "video_search"},
    "scripts.show_wti": {"scripts.show_wti", "dataloaders", "modules", "video_search.encoder_flags"},
    "benchmarks": LIBRARIES | {"benchmarks", "engine", "scripts", "video_search"},
    "benchmarks.soak": LIBRARIES | {"main_task_retrieval", "engine.signals", "scripts"},  # which starts whole runs
}

# what may be called while a file is imported: these build a value and touch nothing else
PURE_CALLS = {
    "logging.getLogger", "math.log", "re.compile", "Path", "partial", "frozenset", "tuple",
    "ContextVar", "dataclass", "field", "contextmanager", "property", "cache", "staticmethod", "classmethod", "record",
    "torch.no_grad", "abstractmethod",
    "Instructions",  # a dict in modules.tensor_pickle
    "Field", "Query",  # the range of a parameter in video_search.web.api
    "runtime_checkable",
    "PooledHead", "CrossHead", "TokenHead",  # rows of modules.heads
    "Flag", "sorted", "', '.join", "FLAG_GROUPS.values", "FLAGS.items",  # the table of flags in engine.flags
    "polygon", "star_polygon", "cross_polygon", "loaders",
}  # fmt: skip


def product_files() -> dict[str, Path]:
    """Dotted module name -> file, of all that is not a test."""
    files = [*REPOSITORY.glob("*.py"), *(file for name in PACKAGES for file in (REPOSITORY / name).rglob("*.py"))]
    return {
        ".".join(file.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__"): file
        for file in sorted(files)
    }


FILES = product_files()
TREES = {name: ast.parse(file.read_text(encoding="utf-8"), str(file)) for name, file in FILES.items()}


def imported_modules(tree: ast.AST) -> set[str]:
    """Dotted names that the imports in `tree` load, in functions too; `from package import module` names the module."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: imports here are absolute"
            submodules = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= (submodules & FILES.keys()) or {node.module}
    return names


PROJECT = {name.split(".")[0] for name in FILES}
PROJECT_IMPORTS = {
    name: {other for other in imported_modules(tree) if other.split(".")[0] in PROJECT} for name, tree in TREES.items()
}


def is_within(name: str, packages: set[str]) -> bool:
    """True where `name` is one of the packages or below one."""
    return any(f"{name}.".startswith(f"{package}.") for package in packages)


@pytest.mark.parametrize("name", FILES)
def test_import_rule(name):
    rules = [rule for rule in ALLOWED_IMPORTS if is_within(name, {rule})]
    assert rules, f"{name} has no import rule: give it one in ALLOWED_IMPORTS"
    allowed = ALLOWED_IMPORTS[max(rules, key=len)]
    assert {other for other in PROJECT_IMPORTS[name] if not is_within(other, allowed)} == set()


def test_the_parser_sees_the_imports():
    """What the rule is held against is not empty: a few edges that anyone can read in the files."""
    assert {"util", "engine.evaluation", "modules.modeling"} <= PROJECT_IMPORTS["main_task_retrieval"]
    assert {"engine.run_files", "modules.post_processing"} <= PROJECT_IMPORTS["engine.evaluation"]
    assert "modules.module_clip" in PROJECT_IMPORTS["modules.modeling"]
    assert "dataloaders.dataloader_msrvtt_retrieval" in PROJECT_IMPORTS["dataloaders.data_dataloaders"]


def test_no_import_circle():
    remaining = dict(PROJECT_IMPORTS)
    while True:
        leaves = {name for name, imports in remaining.items() if not imports & remaining.keys()}
        if not leaves:
            break
        remaining = {name: imports for name, imports in remaining.items() if name not in leaves}
    assert remaining == {}


def is_main_guard(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'"


def is_docstring(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def calls_at_import(node: ast.AST) -> set[str]:
    """Names of what is called while the file is imported: everywhere but in the bodies of functions."""
    if isinstance(node, ast.Lambda) or (isinstance(node, ast.stmt) and is_main_guard(node)):
        return set()
    inner = list(ast.iter_child_nodes(node))
    names = set()
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        inner = [*node.decorator_list, *node.args.defaults, *filter(None, node.args.kw_defaults)]
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):  # a bare @decorator is a call too
        names = {ast.unparse(decorator) for decorator in node.decorator_list if not isinstance(decorator, ast.Call)}
    if isinstance(node, ast.Call):
        names = {ast.unparse(node.func)}
    return names.union(*map(calls_at_import, inner))


def targets_at_import(tree: ast.Module) -> set[str]:
    """What the file's own level assigns to and is no plain name, such as `os.environ["A"]`."""
    statements = [node for node in tree.body if isinstance(node, (ast.Assign, ast.AnnAssign))]
    targets = [target for node in statements for target in getattr(node, "targets", None) or [node.target]]
    return {ast.unparse(target) for target in targets if not isinstance(target, (ast.Name, ast.Tuple))}


@pytest.mark.parametrize("name", FILES)
def test_module_level_defines_and_does_nothing(name):
    definitions = (
        ast.Import, ast.ImportFrom, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign,
    )  # fmt: skip
    acting = [
        f"line {node.lineno}: {ast.unparse(node)[:80]}"
        for node in TREES[name].body
        if not (isinstance(node, definitions) or is_docstring(node) or is_main_guard(node))
    ]
    assert acting == []
    assert targets_at_import(TREES[name]) == set()
    assert calls_at_import(TREES[name]) - PURE_CALLS == set()


@pytest.mark.parametrize(
    ("source", "called"),
    [
        ("logger = logging.getLogger(__name__)", {"logging.getLogger"}),
        ("class A:\n    seed = torch.manual_seed(0)", {"torch.manual_seed"}),
        ("@register\ndef f(x=make()):\n    act()", {"register", "make"}),
        ("@register('name')\nclass A: pass", {"register"}),
        ("f = lambda: act()", set()),
        ("if __name__ == '__main__':\n    main()", set()),
    ],
)
def test_calls_at_import(source, called):
    assert calls_at_import(ast.parse(source)) == called


def test_targets_at_import():
    source = 'a = b = 1\nc: int = 2\nos.environ["A"] = "1"\ntorch.backends.cudnn.benchmark = True'
    assert targets_at_import(ast.parse(source)) == {"os.environ['A']", "torch.backends.cudnn.benchmark"}


IMPORT_PROBE = """
import importlib, json, logging, os, random, sys
others, ours = json.loads(sys.argv[1])
for name in others:
    importlib.import_module(name)
import cv2, numpy, torch

def state():
    return {
        "process group": torch.distributed.is_initialized(),
        "root handlers": len(logging.getLogger().handlers),
        "root level": logging.getLogger().level,
        "torch seed": torch.get_rng_state().tolist(),
        "numpy seed": [str(part) for part in numpy.random.get_state()],
        "python seed": str(random.getstate()),
        "torch threads": [torch.get_num_threads(), torch.get_num_interop_threads()],
        "opencv threads": cv2.getNumThreads(),
        "environment": dict(os.environ),
        "cuda": torch.cuda.is_initialized(),
        "folder": sorted(os.listdir()),
    }

before = state()
for name in ours:
    importlib.import_module(name)
after = state()
print(json.dumps({
    "changed": [key for key in before if before[key] != after[key]],
    "process group": after["process group"], "root handlers": after["root handlers"], "cuda": after["cuda"],
    "imported": [name for name in ours if name in sys.modules],
}))
"""


def test_importing_acts_on_nothing(tmp_path):
    """All product modules in a fresh process; third-party ones come first, since what those do is not ours."""
    top_level = [
        node for tree in TREES.values() for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))
    ]
    project = {name.split(".")[0] for name in FILES}
    # what this process has set, by the imports at the top of this file, must not hide what they set
    environment = {
        name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR", "LD_LIBRARY_PATH") if name in os.environ
    }
    others = {name for node in top_level for name in imported_modules(node) if name.split(".")[0] not in project}
    result = subprocess.run(
        [sys.executable, "-c", IMPORT_PROBE, json.dumps([sorted(others), sorted(FILES)])],
        cwd=tmp_path, env={**environment, "PYTHONPATH": str(REPOSITORY)}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == {
        "changed": [],
        "process group": False,
        "root handlers": 0,
        "cuda": False,
        "imported": sorted(FILES),
    }


def forbidden_lines(tree: ast.AST) -> list[str]:
    """Lines with an assert, an except that catches or hides all, or a torch.load that may run code from the file."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Assert):
            found.append(f"line {node.lineno}: assert; raise an error that names the value")
        if isinstance(node, ast.ExceptHandler):
            if node.type is None:
                found.append(f"line {node.lineno}: bare except")
            if all(isinstance(step, (ast.Pass, ast.Continue)) or is_docstring(step) for step in node.body):
                found.append(f"line {node.lineno}: except that hides the error")
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
            keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            if keywords.get("weights_only") != "True":
                found.append(f"line {node.lineno}: torch.load without weights_only=True")
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("torch.jit.load", "pickle.load", "pickle.loads"):
            found.append(f"line {node.lineno}: {ast.unparse(node.func)} runs code of the file")
    return found


@pytest.mark.parametrize("name", FILES)
def test_nothing_forbidden(name):
    assert forbidden_lines(TREES[name]) == []


@pytest.mark.parametrize(
    "source",
    [
        "assert x",
        "try:\n    f()\nexcept:\n    raise",
        "try:\n    f()\nexcept OSError:\n    pass",
        "try:\n    f()\nexcept OSError:\n    ...",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.load(path, weights_only=flag)",
        "torch.jit.load(path)",
        "pickle.loads(content)",
    ],
)
def test_forbidden_is_found(source):
    assert len(forbidden_lines(ast.parse(source))) == 1


HEAD_CLASSES = {"PooledHead", "CrossHead", "TokenHead"}
KNOW_THE_HEADS = {"modules.heads", "modules.configuration"}
COMPARE_NO_HEADS = [name for name in FILES if not is_within(name, KNOW_THE_HEADS | {"benchmarks"})]


def head_comparisons(tree: ast.AST) -> list[str]:
    """Lines that choose by a head's name or class. Aggregations share two of the names and may be compared."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            parts = [part for operand in (node.left, *node.comparators) for part in ast.walk(operand)]
        elif isinstance(node, (ast.MatchValue, ast.MatchClass)):
            parts = list(ast.walk(node))
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("isinstance", "issubclass"):
            parts = [part for part in ast.walk(node) if ast.unparse(part).split(".")[-1] in HEAD_CLASSES]
        else:
            continue
        words = {getattr(part, "attr", None) or getattr(part, "id", None) or getattr(part, "value", None)
                 for part in parts if isinstance(part, (ast.Attribute, ast.Name, ast.Constant))}  # fmt: skip
        names = {*SIM_HEADERS, *HEAD_CLASSES} - ({*AGG_MODULES} if "aggregation" in words else set())
        if "sim_header" in words or words & names:
            found.append(f"line {node.lineno}: {ast.unparse(node)}")
    return found


@pytest.mark.parametrize("name", COMPARE_NO_HEADS)
def test_only_the_heads_know_their_names(name):
    assert head_comparisons(TREES[name]) == []


@pytest.mark.parametrize(
    "source",
    [
        "config.sim_header == other",
        "flags['sim_header'] in POOLED",
        "settings.get('sim_header') in POOLED",
        "name == 'wti'",
        "name in ('ti', 'xti')",
        "aggregation == 'meanP'",
        "mode == 'seqLSTM'",
        "match name:\n    case 'wti':\n        pass",
        "isinstance(head, heads.TokenHead)",
        "isinstance(head, (int, PooledHead))",
    ],
)
def test_a_comparison_of_heads_is_found(source):
    assert len(head_comparisons(ast.parse(source))) == 1


@pytest.mark.parametrize("source", ["config.aggregation == 'seqLSTM'", "head.encodes_tokens == True", "x = 'wti'"])
def test_other_comparisons_are_none_of_heads(source):
    assert head_comparisons(ast.parse(source)) == []


EXAMPLES = [
    name for name, file in FILES.items() if re.search("^ *>>> ", file.read_text(encoding="utf-8"), re.MULTILINE)
]


@pytest.mark.parametrize("name", EXAMPLES)
def test_doctests(name):
    result = doctest.testmod(importlib.import_module(name))
    assert result.attempted > 0
    assert result.failed == 0


def test_scores_and_losses_have_examples():
    assert {"modules.token_interaction", "modules.losses"} <= set(EXAMPLES)
