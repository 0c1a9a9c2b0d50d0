"""Queries that several panels ask, with what the dashboard's variables choose. `where` goes between the braces."""

RATE = "$__rate_interval"


def rate(metric: str, where: str, by: str = "", over: str = RATE) -> str:
    """Return the query for how fast a counter grows, summed over everything but some labels."""
    return f"sum by ({by}) (rate({metric}{{{where}}}[{over}]))" if by else f"sum(rate({metric}{{{where}}}[{over}]))"


def quantile(quantile: float, metric: str, where: str, by: str = "") -> str:
    """Return the query for a quantile of a histogram, over all instances that are chosen."""
    return f"histogram_quantile({quantile:g}, {rate(f'{metric}_bucket', where, f'le, {by}' if by else 'le')})"


def mean(metric: str, where: str, by: str = "") -> str:
    """Return the query for the mean of a histogram or a summary."""
    return f"{rate(f'{metric}_sum', where, by)} / {rate(f'{metric}_count', where, by)}"


def share(metric: str, where: str, of: str, by: str) -> str:
    """Return the query for what a counter makes of another's whole, by labels that the other may lack."""
    return f"{rate(metric, where, by)} / scalar({rate(of, where)})"
