"""Programs that failed once, shrunk."""

from __future__ import annotations

from tools.fuzz.program import Input, Program
from tools.fuzz.properties import check


def test_signs_of_a_transposed_matrix() -> None:
    program = Program(
        inputs=(Input("x0", ("n", 8), grad=True), Input("w1", (16, 8))),
        lines=("v2 = F.linear(x0, w1).T", "v3 = v2.abs().sum(0)"),
        outputs=("v3",),
    )
    check(program, lossless="exact", bits=8)


def test_a_cast_to_the_type_that_a_value_has() -> None:
    program = Program(
        inputs=(
            Input("x0", ("n", 4, 4, 4), dtype="bfloat16"), Input("w1", (8, 4, 3, 3), dtype="bfloat16", grad=True),
            Input("w2", (8,), dtype="bfloat16", grad=True), Input("w3", (8,), dtype="bfloat16"),
        ),
        lines=(
            "v4 = F.conv2d(x0, w1, padding=1)", "v5 = F.instance_norm(v4, weight=w2, bias=w3)", "v6 = F.hardswish(v5)",
        ),
        outputs=("v6",),
    )  # fmt: skip
    check(program, bits=2, policy="cast")


def test_decisions_in_codes_of_channels_last_images_keep_their_layout() -> None:
    """Sums in backward came out in another order."""
    program = Program(
        inputs=(
            Input("x0", ("n", 4, 4, 4), turned=True), Input("b1", (8,)), Input("b2", (8,), fill="positive"),
            Input("w3", (8, 4, 3, 3), grad=True), Input("w4", (8,), grad=True), Input("w5", (8,), grad=True),
        ),
        lines=(
            "v6 = F.conv2d(x0, w3, padding=1)", "v7 = F.batch_norm(v6, b1, b2, w4, w5, training=True)",
            "v8 = torch.relu(v7)",
        ),
        outputs=("v8",),
    )  # fmt: skip
    check(program, bits=4)


def test_what_lies_in_the_memory_of_an_output_is_not_counted() -> None:
    program = Program(
        inputs=(Input("x0", ("n", 4, 4, 4), grad=True),),
        lines=("v1 = torch.logsumexp(x0.flatten(), 0)", "v2 = v1.expand(2)"),
        outputs=("v2",),
    )
    check(program)


def test_a_decoder_that_is_asked_for_its_mask_alone() -> None:
    """The codes themselves were taken for the decoded value: backward reads the sign of a frozen normalization only."""
    program = Program(
        inputs=(
            Input("x0", ("n", 4, 4, 4), fill="zeros", grad=True, turned=True), Input("w1", (8, 2, 3, 3), grad=True),
            Input("w2", (8,), grad=True), Input("b3", (8,)), Input("b4", (8,), fill="positive"),
        ),
        lines=(
            "v5 = F.conv2d(x0, w1, None, stride=2, padding=1, groups=2)", "v6 = F.batch_norm(v5, b3, b4, None, w2)",
            "v7 = F.leaky_relu(v6)",
        ),
        outputs=("v7",),
    )  # fmt: skip
    check(program, bits=4, min_bytes=200)


def test_a_part_of_a_tensor_is_copied_out_and_products_of_it_round_otherwise() -> None:
    program = Program(
        inputs=(
            Input("x0", ("n", 16, 4), grad=True), Input("i1", (3,), fill=6, dtype="int64"),
            Input("w2", (16, 1), grad=True),
        ),
        lines=("v3 = torch.index_copy(x0, 0, i1, x0[i1])", "v4 = v3.split(1, -1)[0]", "v5 = F.linear(v4, w2)"),
        outputs=("v5",),
        dynamic=True,
    )  # fmt: skip
    check(program)


def test_a_value_with_gaps_between_its_elements_is_stored_without_them() -> None:
    program = Program(
        inputs=(Input("x0", ("n", 16, 4), fill="steps", grad=True), Input("w1", (2,))),
        lines=(
            "v2 = x0[..., ::2]", "v3 = torch.select_scatter(v2, v2[0], 0, 1)", "v4 = F.mish(v3)",
            "v5 = F.layer_norm(v4, (2,), w1)",
        ),
        outputs=("v5",),
    )  # fmt: skip
    check(program)


def test_what_is_not_finite_and_is_clamped_leaves_its_channel_as_it_is() -> None:
    program = Program(
        inputs=(
            Input("x0", ("n", 4, 4, 4), fill="special"), Input("w1", (4, 2, 2, 2), grad=True),
            Input("w2", (4,), grad=True),
        ),
        lines=(
            "v3 = F.conv2d(x0, w1, w2, stride=1, padding=1, groups=2)", "v4 = v3.clamp(-1, 1)", "v5 = torch.asinh(v4)",
        ),
        outputs=("v5",),
    )  # fmt: skip
    check(program, bits=4)


def test_what_is_not_finite_has_a_level_of_its_own_beside_a_threshold_at_the_end_of_the_grid() -> None:
    program = Program(
        inputs=(
            Input("x0", ("n", 4, 4, 4), fill="special"), Input("w1", (4, 2, 2, 2), grad=True),
            Input("w2", (4,), grad=True), Input("w3", (4,), grad=True), Input("w4", (4,), grad=True),
            Input("b5", (4,)), Input("b6", (4,), fill="positive"),
        ),
        lines=(
            "v7 = F.conv2d(x0, w1, w2, stride=1, padding=1, groups=2)", "v8 = F.batch_norm(v7, b5, b6, w3, w4)",
            "v9 = v8.clamp(-1, 1)", "v10 = torch.asinh(v9)",
        ),
        outputs=("v10",),
    )  # fmt: skip
    check(program, policy="mixed")


def test_a_threshold_below_the_grid_has_the_same_place_in_encoder_and_decoder() -> None:
    """Apart by a millionth, which only float64 tells from rounding."""
    program = Program(
        inputs=(
            Input("x0", ("n", 4, 4, 4), dtype="float64", grad=True), Input("w1", (4,), dtype="float64"),
            Input("w2", (8, 2, 1, 1), dtype="float64", grad=True), Input("w3", (8,), dtype="float64"),
            Input("b4", (8,), dtype="float64"), Input("b5", (8,), fill="positive", dtype="float64"),
        ),
        lines=(
            "v6 = F.layer_norm(x0, (4,), w1, None)", "v7 = F.conv2d(v6, w2, None, stride=1, padding=0, groups=2)",
            "v8 = F.batch_norm(v7, b4, b5, None, w3)", "v9 = F.hardswish(v8)",
        ),
        outputs=("v9",),
    )  # fmt: skip
    check(program)


def test_exponents_of_backward_are_exact() -> None:
    """The gradient of logcumsumexp is exp(log|g| - result + ...), of statistics of a channel without variance here."""
    program = Program(
        inputs=(
            Input("x0", ("n", 4, 4, 4), fill="zeros", grad=True), Input("w1", (8, 2, 3, 3), grad=True),
            Input("w2", (8,), grad=True), Input("w4", (8,), grad=True),
        ),
        lines=(
            "v3 = F.conv2d(x0, w1, w2, stride=1, padding=1, groups=2)",
            "v5 = F.instance_norm(v3, weight=w4, bias=None)", "v8 = torch.logcumsumexp(v5, 0)",
        ),
        outputs=("v8",),
    )  # fmt: skip
    check(program, bits=2)


def test_an_exact_value_among_decisions_stored_by_themselves() -> None:
    """The mask is stored, and what it is taken from recomputed: an average above eight bits let a code carry it."""
    program = Program(
        inputs=(
            Input("x1", (3, 8), fill="large", grad=True), Input("i2", (12,), fill=3, dtype="int64"),
            Input("i3", (12,), fill=3, dtype="int64"), Input("w4", (8, 8), grad=True), Input("w5", (8, 8)),
            Input("w6", (16, 8), grad=True), Input("w7", (16,), grad=True), Input("w8", (8, 16), grad=True),
        ),
        lines=(
            "v9 = F.linear(x1, w5)", "v10 = w4[i2] + v9[i3]", "v11 = F.leaky_relu(v10)",
            "v12 = F.linear(v11, w6, w7)", "v13 = F.dropout(F.linear(v12, w8), 0.2)",
        ),
        outputs=("v13",),
    )  # fmt: skip
    check(program, bits="auto", average_bits=12)


def test_a_size_that_a_checkpointed_region_computes() -> None:
    """It was left to backward, which could not have it."""
    program = Program(
        inputs=(Input("x0", ("n", 5, 8)), Input("w1", (8, 8), grad=True)),
        lines=("v2 = torch.tanh(x0) @ w1",),
        outputs=("v2",),
        dynamic=True,
        regions=(("v2",),),
    )
    check(program)
