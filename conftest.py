"""What pytest must know before any test is collected."""


def pytest_collection_modifyitems(items: list) -> None:
    """Let nbval wait a minute, not five seconds, for a cell's last output: two kernels may share a core."""
    for item in items:
        if hasattr(item, "output_timeout"):
            item.output_timeout = 60
