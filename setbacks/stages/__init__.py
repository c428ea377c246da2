"""The stages in order. Each says what it leaves and what it depends on, and checks itself."""

from setbacks.stages import analyze, induce, introspect, judge, report, respond, train

STAGES = (
    induce.STAGE,
    analyze.STAGE,
    introspect.PREFLIGHT,
    train.STAGE,
    introspect.INTROSPECT,
    respond.STAGE,
    judge.STAGE,
    report.STAGE,
)
