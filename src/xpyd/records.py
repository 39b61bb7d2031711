"""The rows of every table a run writes. Tidy: one row per event, the unit in the column's name.

Ranks stream rows to files of their own as they happen (``xpyd.streams``); at the end rank 0 merges them to
``<table>.parquet``. Columns are stable: a change raises ``SCHEMA_VERSION``. Every ``_ns`` is on the client's clock.
In these tables ``block`` is a comparison block (one stretch of one arm), never a KV block.
"""

from __future__ import annotations

from dataclasses import dataclass

SCHEMA_VERSION = 1
COLOCATED, DISAGGREGATED, NULL = "colocated", "disaggregated", "null"  # arms; null: colocated again, the A/A control


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
    """One KV hand-off, written by the decode rank. ``num_inflight`` counts other incoming transfers at its begin."""

    block: int
    request_id: int
    src_rank: int
    dst_rank: int
    mode: str
    num_pieces: int
    payload_bytes: int
    begin_ns: int
    end_ns: int
    num_inflight: int
    verified: bool  # checksums of every layer and block compared across the wire


@dataclass(frozen=True, slots=True)
class StepRow:
    """One engine step of one rank."""

    block: int
    rank: int
    role: str  # prefill | decode | colocated
    begin_ns: int
    end_ns: int
    num_prefill_tokens: int
    num_prefill_seqs: int
    num_decode_seqs: int
    num_context_tokens: int  # context of the decoding sequences, summed
    num_free_kv_blocks: int
    num_waiting: int
    num_preempted: int


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


TABLES: dict[str, type] = {
    "blocks": BlockRow,
    "requests": RequestRow,
    "stages": StageRow,
    "tokens": TokenRow,
    "transfers": TransferRow,
    "steps": StepRow,
    "transfer_points": TransferPointRow,
    "gaps": GapRow,
    "receipts": ReceiptRow,
    "receiving_gaps": ReceivingGapRow,
    "economics": EconomicsRow,
}
