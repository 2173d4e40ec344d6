"""How many rounds or kills are wanted, how many counted, and what the run has come to."""

from __future__ import annotations

from dataclasses import dataclass

SPARE = 10  # more may be drawn than twice as many as are wanted


@dataclass
class Tally:
    """Counts what was drawn. Only what passed or failed counts; the rest is drawn anew, within a limit.

    The rest: the lab itself broke, or a kill came too late.
    """

    wanted: int
    first: int
    passed: int = 0
    failed: int = 0
    others: int = 0

    @property
    def counted(self) -> int:
        return self.passed + self.failed

    @property
    def drawn(self) -> int:
        return self.counted + self.others

    @property
    def number(self) -> int:
        """The next one's."""
        return self.first + self.drawn

    @property
    def goes_on(self) -> bool:
        return self.counted < self.wanted and self.drawn < 2 * self.wanted + SPARE

    def count(self, outcome: str) -> None:
        """Count one: "passed", "failed", or anything else."""
        self.passed += outcome == "passed"
        self.failed += outcome == "failed"
        self.others += outcome not in ("passed", "failed")

    @property
    def exit_code(self) -> int:
        return 1 if self.failed or self.counted < self.wanted else 0

    def __str__(self) -> str:
        text = f"{self.counted} of {self.wanted} counted: {self.passed} passed, {self.failed} failed"
        others = f", of which {self.others} do not count: the lab broke, or a kill came too late"
        text += f"; {self.drawn} were drawn{others if self.others else ''}"
        return text if self.counted >= self.wanted else f"TOO FEW COUNTED: {text}"
