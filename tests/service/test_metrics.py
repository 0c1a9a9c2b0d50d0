import pytest

from service.metrics import Metrics


def test_every_metric_has_the_prefix_and_is_explained() -> None:
    for family in Metrics().registry.collect():
        assert family.documentation
        assert family.name.startswith(("evenkeel_", "process_"))


def test_the_mean_cosine_is_a_plain_mean_at_first_and_moves_slowly_later() -> None:
    metrics = Metrics()

    def observe(cosine: float, times: int = 1) -> float:
        for _ in range(times):
            metrics.observe_prediction(
                alpha=1, winner_group="few", plain_group="many", flipped=True, confounder_cosine=cosine
            )
        return metrics.registry.get_sample_value("evenkeel_confounder_cosine_mean") or 0.0

    assert observe(0.5) == 0.5
    assert observe(-0.5) == 0.0
    assert observe(0.5, times=5000) > 0.49
    assert observe(-0.5) > 0.48


def test_a_client_is_counted_with_both_knobs_both_groups_and_its_cosine() -> None:
    metrics = Metrics()
    shop, idle = metrics.clients.of("shop"), metrics.clients.of("idle")
    for cosine in (0.2, 0.4):
        shop.observe_prediction(
            alpha=1.5,
            prior_strength=0.5,
            winner_group="few",
            plain_group="many",
            flipped=True,
            near_breakpoint=True,
            confounder_cosine=cosine,
        )
    idle.observe_label("few", right=False)

    def value(name: str, **labels: str) -> float | None:
        return metrics.registry.get_sample_value(f"evenkeel_{name}", labels)

    assert value("client_alpha_sum", client="shop") == 3.0
    assert value("client_prior_strength_sum", client="shop") == 1.0
    assert value("client_flips_total", client="shop", from_group="many", to_group="few") == 2
    assert value("client_near_breakpoint_total", client="shop") == 2
    assert value("client_confounder_cosine_mean", client="shop") == pytest.approx(0.3)
    assert value("client_confounder_cosine_mean", client="idle") is None
    assert value("feedback_total", client="idle", shot_group="few", outcome="wrong") == 1


def test_bounded_series_start_at_zero() -> None:
    registry = Metrics().registry
    assert registry.get_sample_value("evenkeel_flips_total", {"from_group": "many", "to_group": "few"}) == 0
    assert registry.get_sample_value("evenkeel_rejected_images_total", {"reason": "queue_full"}) == 0
