"""Damaged files for Hypothesis."""

from hypothesis import strategies as st


@st.composite
def damaged(draw, *contents: bytes) -> bytes:
    """Draw one of `contents` with up to eight bytes changed, and sometimes truncated."""
    content = bytearray(draw(st.sampled_from(contents)))
    changes = st.tuples(st.integers(0, len(content) - 1), st.integers(0, 255))
    for position, value in draw(st.lists(changes, max_size=8)):
        content[position] = value
    return bytes(content[: draw(st.integers(0, len(content)))] if draw(st.booleans()) else content)
