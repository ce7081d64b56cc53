"""Explanations as a person reads them, in English or Chinese."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from porting.ascend.explanations import Explanation, LogFinding, LogReport

LABELS: Mapping[str, Mapping[str, str]] = {
    "en": {
        "documented": "documented",
        "in part": "documented in part, the rest is our advice",
        "guess": "a guess",
        "cause": "likely cause",
        "do": "what to do",
        "unknown code": "in no table that was read",
        "first cause": "first cause, by its place in the log (a guess)",
        "follows": "follows",
        "generic": "wrapper",
        "warning": "warning",
        "note": "note",
        "unknown": "unknown",
        "lines": "line",
        "times": "times",
        "nothing": "no code and no message that is known",
        "more": "further codes, not kept",
        "unexplained": "{count} lines that are marked as errors hold no code and no message that is known; line {lines}",
        "summary": "{source}: {lines} lines ({encodings}), {codes} codes and messages, {unknown} of them unknown",
        "hardware": "from documents, sources and reports; nothing here was checked on hardware",
    },
    "zh": {
        "documented": "有文档依据",
        "in part": "部分有文档依据，其余为本项目的建议",
        "guess": "推测",
        "cause": "可能原因",
        "do": "处理方法",
        "unknown code": "不在已读的任何错误码表中",
        "first cause": "首要原因（按日志中的位置推测）",
        "follows": "后续",
        "generic": "外层错误",
        "warning": "告警",
        "note": "提示",
        "unknown": "未知",
        "lines": "行",
        "times": "次",
        "nothing": "没有已知的错误码或报错文本",
        "more": "个其他错误码未保留",
        "unexplained": "{count} 行标记为错误，但其中没有已知的错误码或报错文本；行 {lines}",
        "summary": "{source}：{lines} 行（{encodings}），{codes} 个错误码和报错文本，其中 {unknown} 个未知",
        "hardware": "依据文档、源码和公开报告；未在硬件上验证",
    },
}


def explanation_text(told: Explanation, lang: str = "en", indent: str = "") -> str:
    """One code: what it means, its likely cause and what to do, each with where that stands."""
    labels = LABELS[lang]
    names = ", ".join(part for part in (told.name, told.module) if part)
    lines = [
        f"{told.code}{f' ({names})' if names else ''}: {told.means}",
        f"  [{_standing(told.means_status, told.means_source, lang)}]",
        f"  {labels['cause']}: {told.cause}",
        f"  {labels['do']}: {told.do}",
        f"  [{_standing(told.advice_status, told.advice_source, lang)}]",
    ]
    return "\n".join(f"{indent}{line}" for line in lines)


def report_text(report: LogReport, lang: str = "en") -> str:
    """A log: the first cause first."""
    labels = LABELS[lang]
    unknown = sum(f.explanation is None for f in report.findings)
    lines = [
        labels["summary"].format(
            source=report.source or "-",
            lines=report.lines,
            encodings=", ".join(report.encodings),
            codes=len(report.findings),
            unknown=unknown,
        )
    ]
    if not report.findings:
        lines.append(labels["nothing"])
    for finding in report.findings:
        lines += ["", *_finding_lines(finding, lang)]
    if report.more:
        lines += ["", f"{report.more} {labels['more']}"]
    if report.unexplained:
        told = labels["unexplained"].format(
            count=report.unexplained, lines=_numbers(report.unexplained_lines, report.unexplained)
        )
        lines += ["", told, f"  | {report.unexplained_sample}"]
    return "\n".join([*lines, "", labels["hardware"]])


def _numbers(lines: Sequence[int], count: int) -> str:
    return ", ".join(map(str, lines)) + (", ..." if count > len(lines) else "")


def _finding_lines(finding: LogFinding, lang: str) -> list[str]:
    labels = LABELS[lang]
    places = _numbers(finding.lines, finding.count)
    times = f", {finding.count} {labels['times']}" if finding.count > 1 else ""
    lines = [f"{labels[finding.role]}; {labels['lines']} {places}{times}", f"  | {finding.sample}"]
    if finding.explanation is None:
        return [*lines, f"  {finding.code}: {labels['unknown code']}"]
    return [*lines, explanation_text(finding.explanation, lang, "  ")]


def _standing(status: str, source: str, lang: str) -> str:
    label = LABELS[lang][status]
    return f"{label}: {source}" if source else label
