"""What of torch is private and leaned on all the same: each is there, and is what we take it for.

A release of torch may move any of it. Then a test here fails and names it, and the modules that use
it, before some other test fails for reasons that take a day to find.
"""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from functorch.compile import make_boxed_func
from torch._inductor.decomposition import select_decomp_table
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

import fusepass

# What is private -> the parameters that it takes, where it is a function, or what it has.
INTERNALS: dict[str, tuple[str, ...]] = {
    "torch._C._autograd.DeviceType": ("CPU", "CUDA"),
    "torch._C._dynamo.eval_frame._debug_get_cache_entry_list": (),
    "torch._C._dynamo.eval_frame.reset_code": (),
    "torch._C.DispatchKey": ("AutocastCPU", "AutocastCUDA"),
    "torch._C.DispatchKeySet": (),
    "torch._C._AutoDispatchBelowAutograd": (),
    "torch._C._ExcludeDispatchKeyGuard": (),
    "torch._C._after_autograd_keyset": (),
    "torch._C._are_functorch_transforms_active": (),
    "torch._C._has_mkldnn": (),
    "torch._C.has_mkl": (),
    "torch._TorchCompileInductorWrapper": ("mode", "options", "dynamic"),
    "torch._check_value": (),
    "torch._dynamo.config": ("accumulated_recompile_limit", "recompile_limit", "patch"),
    "torch._dynamo.convert_frame": ("register_bytecode_hook",),
    "torch._dynamo.eval_frame.OptimizedModule": (),
    "torch._dynamo.guards.DeletedGuardManagerWrapper": ("reason",),
    "torch._dynamo.list_backends": (),
    "torch._dynamo.pgo": ("get_code_state",),
    "torch._dynamo.reset": (),
    "torch._dynamo.utils.counters": (),
    "torch._functorch._aot_autograd.utils.make_boxed_func": ("f",),
    "torch._functorch.config": ("activation_memory_budget",),
    "torch._functorch.partitioners": ("get_default_op_list",),
    "torch._guards.TracingContext": ("try_get",),
    "torch._inductor.compile_fx": ("compile_fx",),
    "torch._inductor.compile_fx.compile_fx": (
        "model_", "example_inputs_", "inner_compile", "config_patches",
    ),
    "torch._inductor.config": (
        "cpp", "cpp_wrapper", "force_disable_caches", "freezing", "joint_custom_pre_pass",
        "max_autotune", "patch", "post_grad_custom_post_pass",
    ),
    "torch._inductor.config.cpp": ("weight_prepack",),
    "torch._inductor.cudagraph_trees.reset_cudagraph_trees": (),
    "torch._inductor.custom_graph_pass": ("CustomGraphPass", "get_hash_for_files"),
    "torch._inductor.custom_graph_pass.CustomGraphPass": ("uuid",),
    "torch._inductor.decomposition.select_decomp_table": (),
    "torch._inductor.fx_utils.get_node_storage": ("node",),
    "torch._inductor.ir.BaseView": ("unwrap_view",),
    "torch._inductor.ir.ExternKernel": ("require_contiguous",),
    "torch._inductor.ir.FlexibleLayout": (),
    "torch._inductor.ir.StorageBox": (),
    "torch._inductor.ir.TensorBox": (),
    "torch._inductor.lowering": (
        "add_needs_realized_inputs", "clone", "fallback_handler", "lowerings", "register_lowering",
    ),
    "torch._inductor.virtualized.V": ("aot_compilation",),
    "torch._logging._internal.trace_structured": ("name", "metadata_fn", "payload_fn"),
    "torch._ops.HigherOrderOperator": (),
    "torch._ops.OpOverload": ("overloadpacket", "namespace"),
    "torch._ops.OpOverloadPacket": ("overloads",),
    "torch._subclasses.FakeTensor": (),
    "torch.fx.experimental.proxy_tensor.make_fx": ("f", "decomposition_table"),
    "torch.utils._python_dispatch._disable_current_modes": (),
    "torch.utils._pytree.tree_flatten": ("tree",),
}  # fmt: skip


def _resolve(path: str) -> Any:
    """The object: its module is imported as far as it is one."""
    names = path.split(".")
    for end in range(len(names), 0, -1):
        try:
            module = importlib.import_module(".".join(names[:end]))
        except ImportError:
            continue
        return functools.reduce(getattr, names[end:], module)
    raise ImportError(path)


def _parts(found: Any) -> set[str]:
    """The names of an object's parameters and attributes."""
    try:
        parameters = set(inspect.signature(found).parameters)
    except (TypeError, ValueError):
        parameters = set()
    return parameters | set(dir(found))


@pytest.mark.parametrize("path", INTERNALS)
def test_it_is_there(path: str) -> None:
    try:
        found = _resolve(path)
    except (ImportError, AttributeError) as error:
        pytest.fail(f"torch {torch.__version__} has no {path} ({error}), used in {_users(path)}")
    missing = [part for part in INTERNALS[path] if not (part in _parts(found) or _has(found, part))]
    assert not missing, f"torch {torch.__version__}: {path} lacks {missing}; see {_users(path)}"


def _has(found: Any, part: str) -> bool:
    """Whether it has an attribute that ``dir`` does not tell of, as handlers and configurations."""
    try:
        getattr(found, part)
    except AttributeError:
        return False
    return True


# --- the list is whole ----------------------------------------------------------------------------


def _used() -> Iterator[tuple[str, str]]:
    """(what of torch's private parts, in which file) of every import and attribute."""
    root = Path(fusepass.__file__).parent
    for file in sorted(root.rglob("*.py")):
        tree = ast.parse(file.read_text())
        for node in ast.walk(tree):
            for path in _paths(node):
                if path.startswith("torch.") and _is_private(path):
                    yield path, str(file.relative_to(root))


def _paths(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.ImportFrom) and node.module and not node.level:
        yield from (f"{node.module}.{alias.name}" for alias in node.names)
    elif isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.Attribute):
        dotted = ast.unparse(node)
        if all(name.isidentifier() for name in dotted.split(".")):
            yield dotted


def _is_private(path: str) -> bool:
    names = path.split(".")[1:]
    private = any(n.startswith("_") and not n.startswith("__") for n in names)
    return (private or "experimental" in names) and names[0] != "ops"


def _users(path: str) -> list[str]:
    return sorted(
        {file for used, file in _used() if used.startswith(path) or path.startswith(used)}
    )


def test_every_private_part_that_is_used_is_listed() -> None:
    """A module on the way to one that is listed, and what is in one, needs no line of its own."""
    listed = set(INTERNALS)
    parts = {f"{path}.{part}" for path, some in INTERNALS.items() for part in some}
    unknown = {
        f"{used}, in {file}"
        for used, file in _used()
        if used not in listed | parts
        and not any(known.startswith(f"{used}.") for known in listed)
        and not any(used.startswith(f"{part}.") for part in parts)
    }
    assert not unknown, f"add to INTERNALS: {sorted(unknown)}"


def test_nothing_is_listed_that_nobody_uses() -> None:
    used = {path for path, _ in _used()}
    idle = [p for p in INTERNALS if not any(u.startswith(p) or p.startswith(u) for u in used)]
    assert not idle


# --- what a graph tells ---------------------------------------------------------------------------


def _saves(context: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE


def test_nodes_of_a_joint_graph_carry_what_the_pass_reads() -> None:
    """``val``, the operator that was taken apart, the user's line, and checkpoint's marks."""
    seen: list[torch.fx.Graph] = []

    def partition(joint: torch.fx.GraphModule, inputs: Any, **keywords: Any) -> Any:
        from torch._functorch.partitioners import min_cut_rematerialization_partition

        seen.append(joint.graph)
        return min_cut_rematerialization_partition(joint, inputs, **keywords)

    contexts = functools.partial(create_selective_checkpoint_contexts, _saves)

    def backend(gm: torch.fx.GraphModule, inputs: Any) -> Any:
        from torch._dynamo.backends.common import aot_autograd

        keep = lambda gm, _: make_boxed_func(gm.forward)  # noqa: E731
        table = select_decomp_table()
        return aot_autograd(
            fw_compiler=keep, bw_compiler=keep, partition_fn=partition, decompositions=table
        )(gm, inputs)

    linear = torch.nn.Linear(4, 4)

    def block(x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.silu(linear(x))

    @torch.compile(backend=backend)
    def function(x: torch.Tensor) -> torch.Tensor:
        return checkpoint(block, x, use_reentrant=False, context_fn=contexts)

    function(torch.randn(2, 4)).sum().backward()
    (graph,) = seen
    (product,) = graph.find_nodes(op="call_function", target=torch.ops.aten.addmm.default)
    assert tuple(product.meta["val"].shape) == (2, 4)
    assert product.meta["recompute"] == CheckpointPolicy.MUST_SAVE
    assert "in block" in product.meta["stack_trace"] and product.meta["nn_module_stack"]
    assert product.target._schema.name == "aten::addmm"
    made_of = [n.meta["original_aten"].overloadpacket for n in graph.nodes if n.op[:4] == "call"]
    assert made_of.count(torch.ops.aten.silu) > 1
