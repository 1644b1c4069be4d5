"""The entry point: options, modes, the user's own passes, the environment, both compile caches."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
import types
from pathlib import Path

import pytest
import torch
from small_models import QUICK
from torch import nn
from torch._dynamo.utils import counters
from torch._inductor import compile_fx as inductor
from torch._inductor.custom_graph_pass import CustomGraphPass
from torch.testing import assert_close

from fusepass.examples.gemm_scaling_hardtanh_gelu import Model

MODE = "max-autotune-no-cudagraphs"
MODES = torch._inductor.list_mode_options()


def _model() -> tuple[nn.Module, torch.Tensor]:
    return Model(64, 48, 0.5, -2, 2).eval(), torch.randn(8, 64) * 3


def _fused() -> int:
    return counters["fusepass"]["fused"]


def test_named_backend_fuses_and_leaves_the_model_alone() -> None:
    model, x = _model()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    seen = []
    model.gemm.register_forward_hook(lambda *_: seen.append("hook"))
    expected = model(x)
    compiled = torch.compile(model, backend="fusepass")
    with torch.no_grad():
        assert_close(compiled(x), expected)
    assert _fused() == 1
    assert seen == ["hook", "hook"]
    assert_close(model.state_dict(), before)
    assert list(dict(model.named_parameters())) == ["gemm.weight", "gemm.bias"]


def test_a_mode_runs() -> None:
    model, x = _model()
    with torch.no_grad():
        fast = torch.compile(model, backend="fusepass", mode=MODE)
        assert_close(fast(x), model(x))
    assert _fused() == 1


@pytest.mark.parametrize("keywords", [*({"mode": m} for m in MODES), {"options": MODES[MODE]}])
def test_inductor_gets_what_its_own_backend_would_give_it(
    keywords: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, object]] = []

    def compile_fx(
        gm: torch.fx.GraphModule, inputs: object, *, config_patches: dict, **_: object
    ) -> object:
        seen.append(config_patches)
        return gm.forward

    monkeypatch.setattr(inductor, "compile_fx", compile_fx)
    model, x = _model()
    for backend in ("inductor", "fusepass"):
        torch._dynamo.reset()
        torch.compile(model, backend=backend, **keywords)(x)  # type: ignore[call-overload]
    theirs, ours = seen
    assert ours.pop("joint_custom_pre_pass") and ours.pop("post_grad_custom_post_pass")
    assert ours == theirs
    assert theirs == (keywords.get("options") or MODES[str(keywords["mode"])])


def test_options_of_both_kinds() -> None:
    model, x = _model()
    options = {"fusepass.numerics": "bitwise", "max_autotune": False, "epilogue_fusion": True}
    with torch.no_grad():
        assert torch.equal(torch.compile(model, backend="fusepass", options=options)(x), model(x))
    assert _fused() == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fusepass.numeric": "bitwise"}, "Unexpected optimization option fusepass.numeric"),
        ({"max_autotoon": True}, "Unexpected optimization option max_autotoon"),
        ({"fusepass.numerics": "exact"}, "use one of accurate, bitwise"),
        ({"max_autotune": "yes"}, "Unexpected type of attr max_autotune"),
    ],
)
def test_a_bad_option_is_named(options: dict[str, object], message: str) -> None:
    model, x = _model()
    with pytest.raises(Exception, match=message):
        torch.compile(model, backend="fusepass", options=options)(x)


def test_keywords_of_the_future_are_accepted() -> None:
    from fusepass.backend import fusepass

    def backend(gm, inputs):
        return fusepass(gm, inputs, name="region", something_new=3)

    model, x = _model()
    with torch.no_grad(), torch._inductor.config.patch(QUICK):
        assert_close(torch.compile(model, backend=backend)(x), model(x))
    assert _fused() == 1


class _Counting(CustomGraphPass):
    calls = 0

    def __call__(self, graph: torch.fx.Graph) -> None:
        type(self).calls += 1

    def uuid(self) -> object:
        return "counting"


def test_the_users_own_joint_pass_still_runs() -> None:
    model, x = _model()
    _Counting.calls = 0
    options = {"joint_custom_pre_pass": _Counting()}
    with torch.no_grad(), torch._inductor.config.patch(QUICK):
        torch.compile(model, backend="fusepass", options=options)(x)
        assert (_Counting.calls, _fused()) == (1, 1)
        torch._dynamo.reset()
        with torch._inductor.config.patch(joint_custom_pre_pass=_Counting()):
            torch.compile(model, backend="fusepass")(x)
    assert (_Counting.calls, _fused()) == (2, 2)


def test_chain_is_cached_only_if_every_pass_can_be() -> None:
    from fusepass.backend import PassChain
    from fusepass.rewrite.graph_pass import FusePass

    assert PassChain((_Counting(), FusePass())).uuid() is not None
    assert PassChain((lambda graph: None, FusePass())).uuid() is None
    assert PassChain((FusePass("accurate"),)).uuid() != PassChain((FusePass("bitwise"),)).uuid()


_QUICKLY = f", options={QUICK}"
_PROGRAM = """
import torch
from torch._dynamo.utils import counters
from torch import nn
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(32, 32), nn.Hardtanh(-2, 2), nn.GELU())
x = torch.randn(4, 32)
with torch.no_grad():
    out = torch.compile(model{arguments})(x)
    torch.testing.assert_close(out, model(x))
print("fused", counters["fusepass"]["fused"])
print("aot", counters["aot_autograd"]["autograd_cache_hit"],
      "fx", counters["inductor"]["fxgraph_cache_hit"])
print("ops", "fusepass" in str(torch._C._dispatch_get_all_op_names()))
"""


def run_program(tmp_path: Path, text: str, **environment: str) -> str:
    """Runs a program that does not import fusepass in a process of its own."""
    script = tmp_path / "program.py"
    script.write_text(textwrap.dedent(text))
    env = {**os.environ, **environment}
    done = subprocess.run(
        [sys.executable, str(script)], env=env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_switched_off_the_backend_is_inductor(tmp_path: Path) -> None:
    program = _PROGRAM.replace("{arguments}", f"{_QUICKLY}, backend='fusepass'")
    plain = f"torch.compile(model{_QUICKLY})(x[:3])\n"
    program = program.replace('print("fused', plain + 'print("fused', 1)
    assert "fused 0" in run_program(tmp_path, program, FUSEPASS="0")


@pytest.mark.parametrize("by_name", [False, True])
def test_installed_callers_may_give_the_config_in_any_way(by_name: bool) -> None:
    from fusepass.backend import install

    module = types.ModuleType("as torch._inductor.compile_fx")
    module.compile_fx = inductor.compile_fx  # type: ignore[attr-defined]
    install(module)
    _Counting.calls = 0
    config = {"joint_custom_pre_pass": _Counting()}

    def backend(gm: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> object:
        inner = inductor.compile_fx_inner
        if by_name:
            return module.compile_fx(
                config_patches=config, example_inputs_=inputs, inner_compile=inner, model_=gm
            )
        return module.compile_fx(gm, inputs, inner, config)

    model, x = _model()
    with torch.no_grad(), torch._inductor.config.patch(QUICK):
        assert_close(torch.compile(model, backend=backend)(x), model(x))
    assert (_Counting.calls, _fused()) == (1, 1)


def test_another_value_is_told_once(tmp_path: Path) -> None:
    program = "import warnings\nwarnings.simplefilter('ignore')\n"
    program += _PROGRAM.replace("{arguments}", _QUICKLY)
    program += f"torch.compile(model{_QUICKLY})(x[:2])\n"
    out = run_program(tmp_path, program, FUSEPASS="true")
    assert "fused 0" in out
    line = "fusepass: FUSEPASS='true' is ignored: use 1 to fuse every torch.compile, or 0\n"
    assert out.count(line) == out.count("FUSEPASS") == 1


def test_a_program_that_compiles_nothing_is_told_nothing(tmp_path: Path) -> None:
    assert run_program(tmp_path, "import torch\nprint(1)", FUSEPASS="true") == "1\n"


def test_environment_switch_takes_no_other_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUSEPASS", "yes")
    model, x = _model()
    with pytest.raises(Exception, match="FUSEPASS='yes': use 1"):
        torch.compile(model, backend="fusepass")(x)


def test_environment_numerics(monkeypatch: pytest.MonkeyPatch) -> None:
    from fusepass.settings import split_options

    monkeypatch.setenv("FUSEPASS_NUMERICS", "bitwise")
    assert split_options(None)[0].numerics == "bitwise"
    assert split_options({"fusepass.numerics": "accurate"})[0].numerics == "accurate"
    monkeypatch.setenv("FUSEPASS_NUMERICS", "sloppy")
    with pytest.raises(ValueError, match="FUSEPASS_NUMERICS is 'sloppy'"):
        split_options(None)


def test_a_second_process_compiles_nothing_and_still_runs_the_op(tmp_path: Path) -> None:
    """Of what is fused by name, and by the environment alone, which says nothing of it."""
    program = _PROGRAM.replace("{arguments}", f"{_QUICKLY}, backend='fusepass'")
    training = f"torch.compile(model{_QUICKLY})(x).sum().backward()"
    program = program.replace('print("fused', f'{training}\nprint("fused')
    switched = {
        "FUSEPASS": "1",
        "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache"),
        "TORCHINDUCTOR_FX_GRAPH_CACHE": "1",
        "TORCHINDUCTOR_AUTOGRAD_CACHE": "1",
    }
    first = run_program(tmp_path, program, **switched)
    assert re.fullmatch(r"fused 2\naot 0 fx 0\nops True\n", first)
    second = run_program(tmp_path, program, **switched)
    # A warm cache does not even run the pass; the op must stand on its own. Three graphs: of
    # inference, of the forward and of the backward.
    assert re.fullmatch(r"fused 0\naot 2 fx 3\nops True\n", second)


def test_import_is_free() -> None:
    program = """
import sys, torch
before = set(sys.modules)
import fusepass
new = set(sys.modules) - before
assert new == {"fusepass"}, new
assert not torch.cuda.is_initialized()
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


def test_broken_installation_does_not_break_torch(tmp_path: Path) -> None:
    broken = tmp_path / "fusepass"
    broken.mkdir()
    (broken / "__init__.py").write_text("raise RuntimeError('broken')")
    out = run_program(tmp_path, _PROGRAM.replace("{arguments}", _QUICKLY), FUSEPASS="1")
    assert "fused 0" in out and "could not be loaded (RuntimeError: broken)" in out


def test_autoload_without_the_flag_imports_one_small_module() -> None:
    """That and nothing else is what `import torch` pays for our being installed."""
    program = """
import os, sys, torch
ours = sorted(m for m in sys.modules if m.startswith("fusepass"))
assert ours == ["fusepass_autoload"], ours
assert not any("compile_fx" in type(f).__module__ + repr(f) for f in sys.meta_path)
del sys.modules["fusepass_autoload"]
before, finders = set(sys.modules), list(sys.meta_path)
import fusepass_autoload
os.environ["FUSEPASS"] = ""  # which is none, either
fusepass_autoload.activate()
assert set(sys.modules) - before == {"fusepass_autoload"}, set(sys.modules) - before
assert sys.meta_path == finders
"""
    env = {k: v for k, v in os.environ.items() if k != "FUSEPASS"}
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120, env=env)
