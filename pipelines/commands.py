"""The commands, in the order of use."""

COMMANDS = {
    "demo": "a complete run on drawn scenes, with a small CLIP that comes with the package",
    "models": "the models that are known by name, or what a checkpoint is",
    "inspect": "what a file or folder is, and what to do with it",
    "embed": "pictures and captions → a dataset of embeddings, scores and labels",
    "label": "new labels for a dataset, from its stored embeddings",
    "filter": "a dataset → the rows that an expression, a rank or a sample keeps",
    "deduplicate": "a dataset → its rows without equal or similar ones",
    "export": "rows of a dataset → training shards, or another tool's layout",
    "search": "words, a picture or a sample → the nearest rows",
    "index": "an index for many searches",
    "evaluate": "how often labels are right, and for whom",
    "report": "a page that shows what is in a dataset",
    "browse": "a page on this machine to search and look in",
}
