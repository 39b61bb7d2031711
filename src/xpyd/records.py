"""The rows of every table a run writes. Tidy: one row per event, the unit in the column's name.

Ranks stream rows to files of their own as they happen (``xpyd.streams``); at the end rank 0 merges them to
``<table>.parquet``. Columns are stable: a change raises ``SCHEMA_VERSION``. Every ``_ns`` is on the client's clock.
In these tables ``block`` is a comparison block (one stretch of one arm), never a KV block.
"""

from __future__ import annotations

from dataclasses import dataclass

PREDICTED = "predicted.json"  # beside the tables: what a run froze before its first request
SCHEMA_VERSION = 3
# Arms. ``colocated_tuned``: colocated with a tuned scheduler. ``null``: the A/A control, which is the tuned arm once
# more, or without one the colocated arm. ``_speculative``: with guesses ahead, where an arm without them is played too.
COLOCATED, COLOCATED_TUNED, DISAGGREGATED, NULL = "colocated", "colocated_tuned", "disaggregated", "null"
HYBRID = "hybrid"  # every rank in every role; each request stays or moves, whichever is cheaper
COLOCATED_SPECULATIVE, DISAGGREGATED_SPECULATIVE = "colocated_speculative", "disaggregated_speculative"
SPLIT_ARMS = (DISAGGREGATED, DISAGGREGATED_SPECULATIVE)  # those on the configured placement: KV moves


@dataclass(frozen=True, slots=True)
class BlockRow:
    """One block of one arm: written by rank 0 when the block ends. A block without a row did not end.

    ``pair`` joins the blocks that played the same requests. Byte columns are sums over ranks: what the ledger
    planned, what the transport says it received, what the network interfaces counted (-1: not readable here).
    """

    block: int
    pair: int
    arm: str
    begin_ns: int
    end_ns: int
    num_requests: int
    clock_error_ns: int
    ledger_bytes: int
    transport_bytes: int
    interface_bytes: int


@dataclass(frozen=True, slots=True)
class RequestRow:
    """One offered request of a block, written before the block begins, so that a killed run lists it too."""

    block: int
    pair: int
    arm: str
    request_id: int
    class_name: str
    input_len: int
    output_len: int
    arrival_offset_ns: int


@dataclass(frozen=True, slots=True)
class StageRow:
    """One stamp. ``rank`` is where it was taken; ``reason`` says why, for FAILED."""

    block: int
    request_id: int
    stage: str  # a request.Stage value
    rank: int
    t_ns: int
    reason: str = ""


@dataclass(frozen=True, slots=True)
class TokenRow:
    """One output token. ``t_ns`` is when the client had it, ``emitted_ns`` when the worker's step committed it.

    ``margin`` is the gap between the two largest logits: a divergence at a tiny margin is rounding.
    """

    block: int
    request_id: int
    index: int
    token_id: int
    t_ns: int
    emitted_ns: int
    rank: int
    margin: float


@dataclass(frozen=True, slots=True)
class TransferRow:
    """One KV hand-off, written by the prefill rank when its blocks are released.

    ``reserved_ns``: the destination blocks were set aside. ``num_inflight`` counts other transfers under way to that
    rank when this one began.
    """

    block: int
    request_id: int
    src_rank: int
    dst_rank: int
    mode: str  # whole | layerwise | chunkwise
    direction: str  # pull | push
    staged: bool  # gathered into staging memory, sent, and scattered
    num_pieces: int
    payload_bytes: int
    reserved_ns: int
    begin_ns: int
    end_ns: int
    num_inflight: int
    verified: bool  # checksums of every layer and block compared across the wire


@dataclass(frozen=True, slots=True)
class CoalescingRow:
    """One choice under ``transfer.staging=auto``, written by the decode rank: both ways as predicted, and the taken."""

    block: int
    request_id: int
    payload_bytes: int
    num_direct_pieces: int
    num_staged_pieces: int
    direct_s: float
    staged_s: float
    staged: bool
    reason: str


@dataclass(frozen=True, slots=True)
class CacheRow:
    """What a prefix cache had of a request that was given blocks, to compute it or (decode) for KV that arrives."""

    block: int
    request_id: int
    rank: int
    role: str
    t_ns: int
    num_tokens: int  # known by then; more than the prompt after a preemption
    num_cached_tokens: int  # of them: not computed, or not moved
    num_host_tokens: int  # of these: fetched from the host tier
    num_remote_tokens: int  # of these: fetched from the remote pool, before the request was queued
    saved_bytes: int  # decode: KV that did not have to move; else 0


@dataclass(frozen=True, slots=True)
class TierRow:
    """Bytes that a rank's prefix cache moved in a block, by way: ``pool host``, or ``fetched`` over the wire."""

    block: int
    rank: int
    way: str
    num_bytes: int


@dataclass(unsafe_hash=True, slots=True)  # made in every step: frozen, that takes three times as long
class StepRow:
    """One engine step of one rank."""

    block: int
    rank: int
    role: str  # prefill | decode | colocated | hybrid
    begin_ns: int
    end_ns: int
    num_prefill_tokens: int
    num_prefill_seqs: int
    num_decode_seqs: int
    num_context_tokens: int  # context of the decoding sequences, summed
    num_free_kv_blocks: int
    num_reserved_kv_blocks: int  # decode: for KV on its way, or landed and waiting for a seat; not free
    num_waiting: int
    num_preempted: int


@dataclass(frozen=True, slots=True)
class SpeculationRow:
    """The guessing of one engine step with sequences that decode; ``begin_ns`` is the step's, in ``steps``."""

    block: int
    rank: int
    begin_ns: int
    num_decode_seqs: int
    num_guessed_tokens: int
    num_accepted_tokens: int
    draft_s: float  # of the step, proposing; the draft's prefill included
    draft_prefill_s: float
    num_draft_prefill_tokens: int  # that the draft computed to catch up: no KV of it is handed off


@dataclass(frozen=True, slots=True)
class DecisionRow:
    """What the hybrid arm chose for one request, written by the client when it was routed; all seconds are modeled.

    The five stages are those of the chosen way, as in the ledger; ``imposed_s`` is what other requests lose by it.
    ``stay_s`` and ``move_s`` are the whole costs, imposed seconds included, of the best way of either kind (inf: none).
    """

    block: int
    request_id: int
    attempt: int
    moves: bool
    prefill_rank: int
    decode_rank: int
    queue_s: float
    prefill_s: float
    exposed_transfer_s: float
    admission_s: float
    decode_s: float
    imposed_s: float
    stay_s: float
    move_s: float
    reason: str


@dataclass(frozen=True, slots=True)
class LossRow:
    """A rank that the client declared lost. A run that went on has these; its exit code says so too."""

    block: int
    rank: int
    role: str
    node: str
    t_ns: int
    silent_s: float  # since the last that was heard of it
    num_requests: int  # under way there
    reason: str


@dataclass(frozen=True, slots=True)
class TransferPointRow:
    """One timed sample of the ``transfer`` experiment: a bill without a model around it."""

    src_rank: int
    dst_rank: int
    transport: str
    payload_bytes: int
    num_layers: int
    num_pieces: int
    pieces_in_flight: int
    repeat: int
    seconds: float
    held_out: bool  # not used by the fit


@dataclass(frozen=True, slots=True)
class TuneRow:
    """One timed transfer of the ``tune`` experiment, with one set of UCX options out of those of its round."""

    round: int
    axis: str
    candidate: str
    reference: bool  # what the others of the round are held against
    settings: str  # JSON: UCX options without their UCX_ prefix
    src_rank: int
    dst_rank: int
    transport: str
    piece_bytes: int  # 0 where refused
    payload_bytes: int
    repeat: int
    seconds: float
    refused: str  # why this candidate could not run; empty where it could


@dataclass(frozen=True, slots=True)
class ColocatedTrialRow:
    """One block of one candidate of ``tune_colocated``; all blocks of a ``repeat`` play the same requests."""

    round: int
    final: bool  # the last round, on requests that the search has not seen
    candidate: str
    start: bool  # the settings that the search began with
    policy: str
    max_num_batched_tokens: int
    max_num_seqs: int
    repeat: int
    block: int
    goodput_rps: float
    attainment: float
    itl_p99_s: float
    ttft_p99_s: float
    e2e_mean_s: float


@dataclass(frozen=True, slots=True)
class SaturationRow:
    """One block of ``saturation`` or ``regret``; all blocks of a ``repeat`` play the same requests, at their rates."""

    block: int
    arm: str  # of ``regret``: the way to use the ranks, by the name that its plan gives it
    rate_rps: float  # of arrivals
    repeat: int
    attainment: float  # by which the search went on


@dataclass(frozen=True, slots=True)
class PlanRow:
    """One simulated block of the ``plan`` experiment: a way to use the ranks, at one rate; every number is modeled.

    ``axis`` and ``value``: what was varied to see where the answer turns; an empty axis is the question itself.
    """

    candidate: str
    num_prefill: int  # instances
    prefill_tp: int
    num_decode: int
    decode_tp: int
    num_colocated: int
    colocated_tp: int
    mode: str  # of the hand-off; empty where no KV moves
    codec: str  # its name; empty: KV as it is
    hybrid: bool  # each request stays or moves
    axis: str
    value: float
    rate_rps: float
    repeat: int
    attainment: float
    goodput_rps: float
    good_tokens_per_s: float  # output tokens of requests within the limits
    ttft_p99_s: float
    itl_p99_s: float
    moved_share: float  # of the requests
    threshold_tokens: float  # hybrid: prompts from here on moved, with the fewest exceptions; NaN: none did


@dataclass(frozen=True, slots=True)
class BreakEvenRow:
    """One arm of one simulated pair of a cell of the ``break_even`` experiment; every number is modeled.

    ``predictor``: the simulator, or one of the simpler ones that it is held against. Stage times are means over
    requests, quantiles over requests (TTFT) or gaps (ITL).
    """

    link_gbps: float
    input_len: int
    rate_rps: float  # of arrivals
    output_len: int
    predictor: str
    pair: int
    arm: str
    queue_s: float
    prefill_s: float
    exposed_transfer_s: float
    admission_s: float
    decode_s: float
    ttft_p50_s: float
    ttft_p99_s: float
    itl_p50_s: float
    itl_p99_s: float
    goodput_rps: float


@dataclass(frozen=True, slots=True)
class GapRow:
    """One decode gap of the ``interference`` experiment: a fixed decode batch, with or without prefill beside it."""

    chunk_tokens: int  # prefill tokens that shared the step; 0: none
    num_decode_seqs: int
    repeat: int
    index: int
    gap_s: float


@dataclass(frozen=True, slots=True)
class ReceiptRow:
    """One timed hand-off of the ``contention`` experiment, beside a decode batch and a source's prefill (0: none)."""

    src_rank: int
    dst_rank: int
    num_decode_seqs: int
    prefill_tokens: int
    payload_bytes: int
    num_pieces: int
    repeat: int
    seconds: float


@dataclass(frozen=True, slots=True)
class ReceivingGapRow:
    """One decode gap of the ``contention`` experiment. ``payload_bytes`` is what arrives meanwhile; 0: nothing."""

    rank: int
    num_decode_seqs: int
    prefill_tokens: int
    payload_bytes: int
    repeat: int
    index: int
    gap_s: float


@dataclass(frozen=True, slots=True)
class ScalingRow:
    """One step of the ``scaling`` experiment, as one rank of an instance of ``width`` ranks sees it.

    ``kind``: what the ranks divide (tp, pp, cp, ep); ``variant``: in which way, of those that the kind has.
    """

    kind: str
    variant: str
    num_micro_batches: int  # of a pipeline; else 0
    width: int
    rank: int  # inside the instance; 0 leads it, and has the tokens when its step ends
    num_cores: int  # that its ranks may use; fewer than ``width``: oversubscribed
    num_prefill_tokens: int  # 0: a decode step
    num_decode_seqs: int
    repeat: int
    index: int
    step_s: float
    exchange_s: float  # of it in exchange with other ranks, waiting for them included; 0 at width 1
    exchange_bytes: int  # that this rank put into it
    work_s: float  # CPU seconds of this rank's thread outside of it
    logit_error: float  # largest difference of a logit to width 1, once per kind of step


@dataclass(frozen=True, slots=True)
class ExpertRow:
    """One step of the ``expert_parallel`` experiment on an instance of ``width`` ranks. Bytes: of all its ranks."""

    width: int
    num_cores: int  # that its ranks may use; fewer than ``width``: oversubscribed
    num_nodes: int
    variant: str  # one rank | contiguous | overlapped | placed
    num_seqs: int
    prompt_tokens: int  # of each; 0: a decode step
    repeat: int
    index: int
    step_s: float
    exchange_s: float  # of it rank 1 waits for, or starts, exchanges
    work_s: float  # CPU seconds of rank 1's thread outside of them
    sent_bytes: int  # dispatched and combined
    cross_node_bytes: int  # of them between nodes
    logit_error: float  # largest difference of a logit to one rank, once per kind of step


@dataclass(frozen=True, slots=True)
class EconomicsRow:
    """One point of the closed-form sweep; every number is modeled."""

    model: str
    rate_gbps: float
    input_len: int
    output_len: int
    kv_bytes: int
    prefill_s: float
    transfer_s: float
    exposed_transfer_s: float
    penalty_ratio: float
    win_s: float
    net_s: float
    breakeven_gbps: float
    breakeven_output_tokens: float
    overlap_needed: float
    verdict: str


@dataclass(frozen=True, slots=True)
class CodecPointRow:
    """One prompt's KV through one codec, all layers: gathered and encoded, then decoded and scattered, on one core.

    ``encode_s`` and ``decode_s`` are CPU seconds of the one thread that works; ``wall_s`` is what both took.
    """

    codec: str
    prompt: int
    input_len: int
    repeat: int
    num_layers: int
    raw_bytes: int
    encoded_bytes: int  # with scales and headers
    encode_s: float
    decode_s: float
    wall_s: float


@dataclass(frozen=True, slots=True)
class DivergenceRow:
    """One decode step of one prompt, from exact KV and from coded KV, with the same model.

    The last five columns are under teacher forcing: both arms are fed the exact arm's tokens.
    """

    codec: str
    prompt: int
    input_len: int
    index: int  # output token; 0 comes with the prompt and is not decoded from coded KV
    exact_token: int
    coded_token: int  # the coded arm's own greedy decoding
    forced_token: int  # its choice under teacher forcing
    kl_nats: float  # of the next-token distribution, exact against coded
    max_logit_error: float
    mean_logit_error: float
    margin: float  # between the exact arm's two largest logits
    logit_std: float  # of the exact arm's logits, for scale


TABLES: dict[str, type] = {
    "blocks": BlockRow,
    "requests": RequestRow,
    "stages": StageRow,
    "tokens": TokenRow,
    "transfers": TransferRow,
    "coalescings": CoalescingRow,
    "caches": CacheRow,
    "tiers": TierRow,
    "steps": StepRow,
    "speculations": SpeculationRow,
    "decisions": DecisionRow,
    "losses": LossRow,
    "transfer_points": TransferPointRow,
    "tune": TuneRow,
    "tune_colocated": ColocatedTrialRow,
    "saturation": SaturationRow,
    "plan": PlanRow,
    "break_even": BreakEvenRow,
    "gaps": GapRow,
    "receipts": ReceiptRow,
    "receiving_gaps": ReceivingGapRow,
    "scaling": ScalingRow,
    "experts": ExpertRow,
    "economics": EconomicsRow,
    "codec_points": CodecPointRow,
    "divergence": DivergenceRow,
}
