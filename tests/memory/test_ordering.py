"""The fence is reached by its public name."""

from pyvmm_memory import fence


def test_the_fence_is_a_function() -> None:
    # a submodule of the same name would hide it
    assert fence() is None  # type: ignore[func-returns-value]
