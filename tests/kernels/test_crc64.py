"""CRC-64/ISO: both backends against the definition."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from litefs._core import crc64 as kernel
from tests.kernels import reference_crc64 as reference

Run = Callable[..., int]
HAS_CLMUL = kernel.backend() == "clmul"
BACKENDS: list[Run] = [kernel.crc64_table] + ([kernel.crc64_clmul] if HAS_CLMUL else [])
registers = st.integers(0, 2**64 - 1)


@pytest.fixture(autouse=True)
def _keep_backend() -> Iterator[None]:
    before = kernel.backend()
    yield
    kernel.set_backend(before)


@pytest.mark.parametrize("run", BACKENDS)
def test_check_value(run: Run) -> None:
    assert run(b"123456789") == 0xB90956C775A41001
    assert run(b"") == 0


@pytest.mark.parametrize("run", BACKENDS)
@pytest.mark.parametrize("start", [0, 0x0123456789ABCDEF])
def test_every_length_across_the_folding_steps(run: Run, start: int) -> None:
    data = bytes(range(256)) * 2
    for length in range(300):
        assert run(data[length % 7 :][:length], start) == reference.crc64(
            data[length % 7 :][:length], start
        ), length


@pytest.mark.parametrize("run", BACKENDS)
@settings(deadline=None)
@given(data=st.binary(max_size=1500), start=registers)
def test_equals_the_reference(run: Run, data: bytes, start: int) -> None:
    assert run(data, start) == reference.crc64(data, start)


@pytest.mark.parametrize("run", BACKENDS)
@settings(deadline=None)
@given(data=st.binary(max_size=400), cut=st.integers(0, 400))
def test_continues_like_one_piece(run: Run, data: bytes, cut: int) -> None:
    assert run(data[cut:], run(data[:cut])) == run(data)


def test_accepts_any_contiguous_buffer_at_any_alignment() -> None:
    data = bytearray(b"x" + bytes(range(200)))
    expected = reference.crc64(data[1:])
    assert kernel.crc64(memoryview(data)[1:]) == expected
    assert kernel.crc64_table(memoryview(data)[1:]) == expected
    with pytest.raises(BufferError):
        kernel.crc64(memoryview(data)[::2])


def test_backend_can_be_chosen() -> None:
    kernel.set_backend("table")
    assert kernel.backend() == "table"
    assert kernel.crc64(b"123456789") == 0xB90956C775A41001
    with pytest.raises(ValueError, match="no such CRC backend"):
        kernel.set_backend("fpga")  # type: ignore[arg-type]
    assert kernel.backend() == "table"


def test_clmul_is_refused_where_the_cpu_has_none() -> None:
    if HAS_CLMUL:
        kernel.set_backend("clmul")
        assert kernel.backend() == "clmul"
    else:
        for use in (lambda: kernel.crc64_clmul(b""), lambda: kernel.set_backend("clmul")):
            with pytest.raises(NotImplementedError):
                use()


def test_large_input_lets_other_threads_run() -> None:
    data = bytes(64 << 20)
    started, running, ticks_during = threading.Event(), threading.Event(), 0

    def work() -> None:
        started.set()
        kernel.crc64_table(data)
        running.set()

    thread = threading.Thread(target=work)
    thread.start()
    started.wait(10)
    while not running.is_set():
        ticks_during += 1
    thread.join(10)
    # With the GIL held throughout, this loop would see the end at its first or second look.
    assert ticks_during > 100
