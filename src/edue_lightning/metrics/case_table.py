"""Statistics by name, of one batch or collected batch by batch on any number of processes."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from torch import Tensor

from edue_lightning.metrics.case_statistics import CaseStatistics, Columns, measure_cases
from edue_lightning.metrics.catalogue import known_columns, known_metrics, statistics_needed
from edue_lightning.metrics.metric import CaseRows, IndexedCases
from edue_lightning.metrics.settings import Members, MetricSettings
from edue_lightning.metrics.summary import Summary, summarise
from edue_lightning.uncertainty import MEMBERS, Readout


def case_statistics(
    members: Tensor,
    masks: Tensor,
    valid: Tensor,
    spacing: Tensor | None = None,
    structures: Sequence[str] | None = None,
    *,
    contents: Members = "logits",
    settings: MetricSettings | None = None,
    names: Sequence[str] | None = None,
    region: Tensor | None = None,
    readout: Readout = MEMBERS,
) -> CaseStatistics:
    """Measure cases, several at a time where their maps are small.

    Args:
        members: `[B, M, K, *S]`, B at least 1; behind the members the maps of `readout.own_maps`.
        masks: `[B, R, K, *S]` in {0, 1}.
        valid: `[B, R]` bool.
        spacing: `[B, n]`, mm along each spatial axis; None for 1.
        structures: names of the K structures, by which settings differ; None for their numbers.
        contents: contents of `members`, logits or probabilities.
        settings: see `MetricSettings`.
        names: names of the statistics wanted, None for all; what only others need is not computed.
        region: `[B, *S]` bool, the voxels that count; None if all do.
        readout: how probability, disagreement and decision are read from the members.

    Raises:
        ValueError: if an argument has another type or shape, a mask of a valid rater holds another number than 0 and 1,
            a spacing is not positive, or a setting does not fit the structures.
        UserError: if a prediction is not finite, as those of a diverged model are (as missing values they would drop
            out of the means and flatter it), or a probability lies outside [0, 1].
    """
    chosen = settings or MetricSettings()
    columns = known_columns(chosen)
    if names is not None:
        columns = columns.choose(names)
    return measure_cases(columns, members, masks, valid, spacing, structures, contents, chosen, region, readout)


class CaseTable(CaseRows):
    """Collects the statistics of cases, and computes any number of metrics over them.

    Memory grows with the number of cases (about 1 KiB per case and structure), not with voxels. A case that arrives
    twice under one index, as padding samplers send it, counts once.

    Args:
        structures: names of the K structures.
        metrics: names of the metrics wanted; statistics that only others need are not computed. None for all metrics
            and every statistic.
        settings: see `MetricSettings`.
        contents: contents of the members passed to `update`, logits or probabilities.
        statistics: names of statistics that are kept beside those that the metrics need.
        readout: how probability, disagreement and decision are read from the members.

    Attributes:
        members: M of the batch that this process saw last.

    Raises:
        ValueError: if a setting does not fit the structures.
    """

    def __init__(
        self,
        structures: Sequence[str],
        metrics: Sequence[str] | None = None,
        settings: MetricSettings | None = None,
        contents: Members = "logits",
        statistics: Sequence[str] = (),
        readout: Readout = MEMBERS,
    ) -> None:
        super().__init__(structures, settings, contents, readout)
        self.metric_names = tuple(known_metrics(self.settings)) if metrics is None else tuple(metrics)
        self.statistic_names = known_columns(self.settings).names
        if metrics is not None:
            needed = statistics_needed(self.metric_names, self.settings)
            self.statistic_names = tuple(dict.fromkeys((*needed, *statistics)))

    @property
    def columns(self) -> Columns:
        """Statistics that are kept."""
        return known_columns(self.settings).choose(self.statistic_names)

    def cases(self) -> IndexedCases:
        """Return the cases of all processes, in the order of their index."""
        return self._read(self.compute())

    def summary(self, resamples: int = 0, groups: Sequence[Hashable] | None = None) -> Summary:
        """Return the metrics over the cases of all processes.

        Args:
            resamples: number of bootstrap resamples; 0 for no intervals.
            groups: group of each case, such as its patient, in the order of `cases`; None for independent cases.
        """
        return summarise(
            self.cases().statistics,
            self.structures,
            metrics=self.metric_names,
            settings=self.settings,
            resamples=resamples,
            groups=groups,
        )
