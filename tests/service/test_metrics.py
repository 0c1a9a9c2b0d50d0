from service.metrics import Metrics


def test_every_metric_has_the_prefix_and_is_explained() -> None:
    for family in Metrics().registry.collect():
        assert family.documentation
        assert family.name.startswith(("evenkeel_", "process_"))


def test_the_mean_cosine_starts_at_the_first_and_moves_slowly() -> None:
    metrics = Metrics()

    def observe(cosine: float) -> float:
        metrics.observe_prediction(
            alpha=1, winner_group="few", plain_group="many", flipped=True, confounder_cosine=cosine
        )
        return metrics.registry.get_sample_value("evenkeel_confounder_cosine_mean") or 0.0

    assert observe(0.5) == 0.5
    assert 0.5 > observe(-0.5) > 0.498


def test_bounded_series_start_at_zero() -> None:
    registry = Metrics().registry
    assert registry.get_sample_value("evenkeel_flips_total", {"from_group": "many", "to_group": "few"}) == 0
    assert registry.get_sample_value("evenkeel_rejected_images_total", {"reason": "queue_full"}) == 0
