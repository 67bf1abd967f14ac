"""The findings of a check. An error breaks readers; a warning violates a recommendation, or only wastes space."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from layerfarm.jobs.errors import LayerfarmError


class Severity(StrEnum):
    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True)
class Finding:
    """One problem."""

    severity: Severity
    code: str
    """The kind of problem, for programs: ``blob-missing``, ``diff-id``."""
    where: str
    """A digest, a tag, or a path relative to the checked directory."""
    message: str


@dataclass
class Report:
    """The findings of a check, and how much it read."""

    findings: list[Finding] = field(default_factory=list)
    reachable: int = 0
    """Blobs that a tag leads to and that were read whole."""
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
        self._add(Severity.ERROR, code, where, message)

    def warning(self, code: str, where: str, message: object) -> None:
        self._add(Severity.WARNING, code, where, message)

    def _add(self, severity: Severity, code: str, where: str, message: object) -> None:
        finding = Finding(severity, code, where, message.what if isinstance(message, LayerfarmError) else str(message))
        if finding not in self.findings[-16:]:  # the same blob may be reached on two paths
            self.findings.append(finding)
