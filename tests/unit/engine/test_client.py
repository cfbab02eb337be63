"""The client over a real engine thread: requests in, streams out, from an event loop."""

import asyncio
import threading

import pytest

from lorry.advice import message_of
from lorry.core import Failure, FailureCode, FinishReason, SamplingParams
from lorry.engine.loop import MAX_FAILURES
from lorry.errors import (
    DoesNotFit,
    InvalidRequest,
    InvocationMissing,
    PromptTooLong,
    QueueFull,
    ShuttingDown,
)
from lorry_adapters.errors import UnknownAdapter
from lorry_adapters.registry.record import AdapterChoice
from support.engine_fakes import answer_of, next_token, request
from support.house import (
    BLOCK,
    MAX_LEN,
    VIRTUAL,
    in_a_loop,
    opened,
    tokens,
    whole,
)
from support.patience import wait_until

FOREVER = 1000
"""More than a test may take."""


# ---- a stream


@in_a_loop
async def test_a_stream_ends_with_its_final_event() -> None:
    with opened() as house:
        generation = await house.submit((4, 5), 4, "a")
        assert [ref.name for ref in generation.refs] == ["a"]
        events = await whole(generation)
        assert tokens(events) == answer_of(request("", (4, 5), 4, [("sha256:a", 1.0)]))
        assert [e.finish for e in events] == [None, None, None, FinishReason.LENGTH]
        with pytest.raises(StopAsyncIteration):
            await anext(generation)
        assert house.shelf.out == 0
        await generation.aclose()


@in_a_loop
async def test_many_streams_each_get_their_own() -> None:
    with opened() as house:
        asked = [((i, 2 * i, 3), 1 + i % 7, ["a", "b", "c"][: i % 3]) for i in range(20)]
        streams = [await house.submit(prompt, new, *names) for prompt, new, names in asked]
        answers = await asyncio.gather(*(whole(stream) for stream in streams))
        for (prompt, new, names), events in zip(asked, answers, strict=True):
            adapters = [(f"sha256:{name}", 1.0) for name in names]
            assert tokens(events) == answer_of(request("", prompt, new, adapters))
        assert house.shelf.out == 0


# ---- closing


@in_a_loop
async def test_closing_cancels_within_a_step_and_gives_the_lease_back() -> None:
    with opened() as house:
        house.runner.gate = threading.Semaphore(0)
        generation = await house.submit((1,), 40, "a")
        house.runner.gate.release()
        await anext(generation)
        await generation.aclose()
        # The lease is the engine's until it says so.
        assert house.shelf.out == 1
        house.runner.gate.release(10_000)
        assert await house.client.drain(FOREVER)
        assert house.shelf.out == 0
        # The step that was under way, and at most the one that began before the letter.
        assert len(house.runner.batches) <= 3
        with pytest.raises(StopAsyncIteration):
            await anext(generation)


@in_a_loop
async def test_closed_before_it_began() -> None:
    with opened() as house:
        house.runner.gate = threading.Semaphore(0)
        streams = [await house.submit((1,), 40) for _ in range(8)]
        for stream in streams:
            await stream.aclose()
            await stream.aclose()
        house.runner.gate.release(10_000)
        assert await house.client.drain(FOREVER)
        assert house.shelf.out == 0


@in_a_loop
async def test_whoever_stops_listening_in_the_middle_can_close() -> None:
    with opened() as house:
        house.runner.gate = threading.Semaphore(0)
        generation = await house.submit((1,), 40)
        listener = asyncio.create_task(anext(generation))
        await asyncio.sleep(0)
        listener.cancel()
        await generation.aclose()
        house.runner.gate.release(10_000)
        assert await house.client.drain(FOREVER)
        assert house.shelf.out == 0


@in_a_loop
async def test_a_listener_hears_of_a_cancellation_by_another() -> None:
    with opened() as house:
        house.runner.gate = threading.Semaphore(0)
        generation = await house.submit((1,), 40)
        listener = asyncio.create_task(anext(generation))
        await asyncio.sleep(0)
        assert not await house.client.drain(0.01)
        house.runner.gate.release(10_000)
        events = [await listener, *await whole(generation)]
        assert events[-1].finish is FinishReason.CANCELLED


# ---- refusals


@in_a_loop
async def test_what_can_never_run_is_refused_and_holds_nothing() -> None:
    with opened(blocks=8) as house:
        with pytest.raises(InvalidRequest):
            await house.submit(())
        with pytest.raises(PromptTooLong, match=r"65 together.*length is 64 tokens"):
            await house.submit([1] * 60, 5)
        with pytest.raises(PromptTooLong, match=r"has 64 tokens and an answer.* is 64 tokens"):
            await house.submit([1] * 64, 1)
        with pytest.raises(DoesNotFit, match="33 tokens of KV cache, but the server has 32"):
            await house.submit([1] * 30, 3)
        with pytest.raises(PromptTooLong, match=r"length is 32 tokens") as long:
            await house.submit([1] * 40, 3)
        assert "--kv-cache-memory" in message_of(long.value)
        with pytest.raises(DoesNotFit, match="sums 3 adapters, but the server has 2 slots") as many:
            await house.submit((1,), 1, "a", "b", "c")
        assert "--max-loras" in message_of(many.value)
        with pytest.raises(UnknownAdapter):
            await house.submit((1,), 1, "unknown")
        assert house.shelf.out == 0
        assert len(await whole(await house.submit([1] * 30, 2))) == 2
        assert await house.client.drain(0)


@in_a_loop
async def test_virtual_tokens_take_room() -> None:
    with opened(blocks=16) as house:
        whole_room = [AdapterChoice("prompt")]
        none_taken = [AdapterChoice("prompt", scale=0.0), AdapterChoice("a")]
        assert house.client.room([]) == house.client.room(none_taken) == MAX_LEN
        assert house.client.room(whole_room) == MAX_LEN - VIRTUAL
        words = "has 50 tokens, its adapter puts 10 virtual ones before them.* 65 together"
        with pytest.raises(PromptTooLong, match=words):
            await house.submit([1] * 50, 5, "prompt")
        events = await whole(await house.submit([1] * 50, 4, "prompt"))
        assert len(tokens(events)) == 4
        zero = await house.client.submit([1] * 50, SamplingParams(14), none_taken)
        assert len(tokens(await whole(zero))) == 14
        assert house.shelf.out == 0
    with opened(blocks=8) as house:
        assert house.client.room(whole_room) == 8 * BLOCK - VIRTUAL
        with pytest.raises(DoesNotFit, match="33 tokens of KV cache, but the server has 32"):
            await house.submit([1] * 20, 3, "prompt")
        assert house.shelf.out == 0


@in_a_loop
async def test_a_prompt_must_call_an_activated_adapter() -> None:
    with opened() as house:
        with pytest.raises(InvocationMissing, match="'called'"):
            await house.submit((7, 8), 2, "a", "called")
        assert house.shelf.out == 0
        prompt = (7, 8, 9, 1)
        answer = tokens(await whole(await house.submit(prompt, 3, "called")))
        used = [("sha256:called", 1.0, 1)]
        assert answer[0] == next_token(prompt, used)
        assert house.shelf.out == 0


@in_a_loop
async def test_an_adapter_at_scale_zero_needs_no_slot() -> None:
    with opened() as house:
        choices = [AdapterChoice(name, scale=scale) for name, scale in
                   [("a", 1.0), ("b", 1.0), ("c", 0.0)]]  # fmt: skip
        events = await whole(await house.client.submit((1,), SamplingParams(2), choices))
        assert len(tokens(events)) == 2


@in_a_loop
async def test_a_full_queue_refuses_and_takes_again() -> None:
    with opened(max_queue=3) as house:
        house.runner.gate = threading.Semaphore(0)
        streams = [await house.submit((1,), 40) for _ in range(3)]
        with pytest.raises(QueueFull) as refused:
            await house.submit()
        assert refused.value.retry_after >= 1
        house.runner.gate.release(2)
        # Whoever has a first token waits no more.
        for stream in streams:
            await anext(stream)
        extra = await house.submit((1,), 1)
        house.runner.gate.release(10_000)
        assert len(await whole(extra)) == 1
        assert house.shelf.out <= 3


@in_a_loop
async def test_who_left_the_queue_keeps_nobody_out() -> None:
    """Also before the engine, in the middle of a step, hears of it."""
    with opened(max_queue=2) as house:
        house.runner.gate = threading.Semaphore(0)
        streams = [await house.submit((1,), 40) for _ in range(2)]
        await streams[0].aclose()
        extra = await house.submit((1,), 1)
        with pytest.raises(QueueFull):
            await house.submit()
        house.runner.gate.release(10_000)
        assert len(await whole(extra)) == 1


# ---- the end


@in_a_loop
async def test_draining_lets_what_runs_end_and_takes_nothing_new() -> None:
    with opened() as house:
        assert house.client.ready
        house.runner.gate = threading.Semaphore(0)
        running = [await house.submit((1,), 5), await house.submit((2,), 5)]
        draining = asyncio.create_task(house.client.drain(FOREVER))
        await asyncio.sleep(0)
        assert not house.client.ready
        with pytest.raises(ShuttingDown):
            await house.submit()
        house.runner.gate.release(10_000)
        assert await draining
        for stream in running:
            assert len(tokens(await whole(stream))) == 5


@in_a_loop
async def test_draining_does_not_wait_for_ever() -> None:
    with opened() as house:
        house.runner.gate = threading.Semaphore(0)
        running = await house.submit((1,), 40)
        assert not await house.client.drain(0.01)
        house.runner.gate.release(10_000)
        assert (await whole(running))[-1].finish is FinishReason.CANCELLED
        assert house.shelf.out == 0


@in_a_loop
async def test_draining_an_idle_server_is_done() -> None:
    with opened() as house:
        assert await house.client.drain(0)


@in_a_loop
async def test_a_stopped_engine_refuses_and_nobody_hangs() -> None:
    with opened() as house:
        await asyncio.to_thread(house.engine.stop)
        with pytest.raises(ShuttingDown):
            await house.submit((1,), 1, "a")
        assert house.shelf.out == 0
        assert await house.client.drain(0)


@in_a_loop
async def test_requests_that_race_with_the_stop_all_end() -> None:
    with opened() as house:
        stopping = asyncio.create_task(asyncio.to_thread(house.engine.stop))
        refused = 0
        streams = []
        while not refused:
            try:
                streams.append(await house.submit((1,), 20))
            except ShuttingDown:
                refused += 1
            except QueueFull:
                pass
            await asyncio.sleep(0)
        await stopping
        for events in [await whole(stream) for stream in streams]:
            assert events[-1].finish is not None
        assert house.shelf.out == 0


@in_a_loop
async def test_a_broken_engine_is_not_ready_and_refuses() -> None:
    with opened() as house:
        house.runner.failing = RuntimeError()
        for _ in range(MAX_FAILURES):
            (event,) = await whole(await house.submit())
            assert event.failure == Failure(FailureCode.STEP_FAILED, "RuntimeError")
            assert house.shelf.out == 0
        await asyncio.to_thread(wait_until, lambda: house.engine.broken)
        assert not house.client.ready
        with pytest.raises(ShuttingDown):
            await house.submit()
        assert house.shelf.out == 0


def test_events_after_the_loop_has_closed_hurt_nobody() -> None:
    with opened() as house:
        house.runner.gate = threading.Semaphore(0)
        asyncio.run(house.submit((1,), 5))
        house.runner.gate.release(10_000)
        wait_until(lambda: not house.shelf.out)
        house.engine.stop()
        assert house.engine.stats.failed_steps == 0
