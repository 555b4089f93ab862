"""Define the tables of an evaluation: a row for each class, and a row for each number of each group."""

from __future__ import annotations

import pyarrow as pa

from schemas.embeddings import described

MEASURE = described("measure", pa.string(), "zeroshot, retrieval or probe", False)
TAXONOMY = described("taxonomy", pa.string(), "name of the taxonomy; null but for zeroshot")
LABELS = pa.list_(pa.struct([("label", pa.string()), ("n", pa.int64())]))


def per_class_schema() -> pa.Schema:
    """Return the schema of `per_class.parquet`; (`measure`, `taxonomy`, `class`) is unique."""
    number, rate = pa.int64(), pa.float64()
    return pa.schema(
        [
            MEASURE,
            TAXONOMY,
            described("class_index", pa.int32(), "place in the taxonomy, or among the classes of a probe", False),
            described("class", pa.string(), "name of the class", False),
            described("n", number, "samples of the class, of those with a truth", False),
            described(
                "labelled", number, "samples with a truth that got its label; null if samples have several classes"
            ),
            described("hits", number, "samples of the class that got its label"),
            described("recall", rate, "hits / n; null without samples"),
            described("recall_low", rate, "lower end of its 95 % interval"),
            described("recall_high", rate, "upper end of its 95 % interval"),
            described("precision", rate, "hits / labelled; null if no sample got its label"),
            described("average_precision", rate, "if samples have several classes; null without samples of the class"),
            described("eleven_point_precision", rate, "the interpolated average precision of VOC 2007"),
            described("roc_auc", rate, "area under the ROC curve; null also if all samples are of the class"),
            described("labels", LABELS, "the labels that samples of the class got, the most frequent first"),
        ]
    )


def per_group_schema() -> pa.Schema:
    """Return the schema of `per_group.parquet`; (`measure`, `taxonomy`, `metric`, `class`, `group`) is unique."""
    return pa.schema(
        [
            MEASURE,
            TAXONOMY,
            described("metric", pa.string(), "acc1, acc5, mean_per_class_recall, recall, label_rate, …", False),
            described("class", pa.string(), "name of the class that the number is about; null if about all"),
            described("group", pa.string(), "value of --group_column", False),
            described(
                "n", pa.int64(), "samples of the group that count; of means over classes, their sum over these", False
            ),
            described("hits", pa.int64(), "how many of them are right, or got the label; null if it is no rate"),
            described("value", pa.float64(), "hits / n where it is a rate; null without samples"),
            described("low", pa.float64(), "lower end of Wilson's 95 % interval of a rate"),
            described("high", pa.float64(), "upper end of Wilson's 95 % interval of a rate"),
            described("spread", pa.float64(), "largest minus smallest value of all groups; the same in each of them"),
        ]
    )
