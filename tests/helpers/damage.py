"""Damaged files for Hypothesis."""

from hypothesis import settings
from hypothesis import strategies as st

many_examples = settings(max_examples=300)  # for readers that take milliseconds


@st.composite
def damaged(draw, *contents: bytes) -> bytes:
    """Draw one of `contents`, damaged in one or more ways.

    Up to eight bytes have another value. A part may be copied to another place, and the end may be
    cut off.
    """
    content = bytearray(draw(st.sampled_from(contents)))
    position = st.integers(0, len(content) - 1)
    for at, value in draw(st.lists(st.tuples(position, st.integers(0, 255)), max_size=8)):
        content[at] = value
    if draw(st.booleans()):
        start, length, at = draw(position), draw(st.integers(1, 64)), draw(position)
        content[at:at] = content[start : start + length]
    if draw(st.booleans()):
        del content[draw(st.integers(0, len(content))) :]
    return bytes(content)
