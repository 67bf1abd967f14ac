"""What a check of an image, a layout or a bundle found: data, not exceptions."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from layerfarm.jobs.errors import LayerfarmError


class Severity(StrEnum):
    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True)
class Finding:
    """One thing that is not as it should be."""

    severity: Severity
    code: str
    """What kind of thing, for programs: ``blob-missing``, ``diff-id``."""
    where: str
    """A digest, a tag, or a path relative to what was checked."""
    message: str


@dataclass
class Report:
    """What a check found, and how much it looked at."""

    findings: list[Finding] = field(default_factory=list)
    reachable: int = 0
    """Blobs that something leads to and that were read whole."""
    reachable_bytes: int = 0
    unreachable: int = 0
    unreachable_bytes: int = 0

    @property
    def errors(self) -> int:
        return sum(finding.severity is Severity.ERROR for finding in self.findings)

    @property
    def warnings(self) -> int:
        return len(self.findings) - self.errors

    def error(self, code: str, where: str, message: object) -> None:
        self._add(Finding(Severity.ERROR, code, where, _text(message)))

    def warning(self, code: str, where: str, message: object) -> None:
        self._add(Finding(Severity.WARNING, code, where, _text(message)))

    def _add(self, finding: Finding) -> None:
        if finding not in self.findings[-16:]:  # the same on two ways to one blob
            self.findings.append(finding)


def _text(message: object) -> str:
    return message.what if isinstance(message, LayerfarmError) else str(message)
