"""Taxonomy: a named list of classes with prompt templates. Pure Python."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import posixpath
import re
from collections import Counter
from collections.abc import Iterable, Mapping

from clip_transforms import storage

DEFAULT_TEMPLATE = "a photo of a {}."
_NAME = re.compile(r"[A-Za-z0-9_-]+")
_SLOTS = ("{}", "{c}")  # as OpenAI and as CLIP_benchmark write them
_TAXONOMY = "a Taxonomy, a text or a Path"
_EXTENSIONS = (".json", ".txt", "")
CLASS_NAMES, _TEMPLATES = "classnames.txt", "zeroshot_classification_templates.txt"  # files in a CLIP_benchmark folder


class TaxonomyError(ValueError):
    """A taxonomy cannot be used; the message is one sentence."""


@dataclasses.dataclass(frozen=True)
class TaxonomyClass:
    """A class of a taxonomy.

    Attributes:
        name: the text of a label.
        aliases: more words to fill into every template.
        prompts: whole texts, which replace the templates filled with `name`.
    """

    name: str
    aliases: tuple[str, ...] = ()
    prompts: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Taxonomy:
    """A named list of classes with prompt templates.

    Attributes:
        name: a name of the form `[A-Za-z0-9_-]+`, which also names a folder in `out/labels/`.
        classes: the classes, in the order of the file, with unique names.
        templates: texts with a slot for the class, `{}` or `{c}`.
    """

    name: str
    classes: tuple[TaxonomyClass, ...]
    templates: tuple[str, ...] = (DEFAULT_TEMPLATE,)

    def __post_init__(self):
        """Refuse a taxonomy that cannot give labels."""
        if not _NAME.fullmatch(self.name):
            raise TaxonomyError(f"--taxonomy {self.name!r}: the file's name may only contain A-Z a-z 0-9 _ -")
        if not self.classes:
            raise TaxonomyError(f"--taxonomy {self.name} has no classes; write at least one")
        for name, count in Counter(c.name for c in self.classes).items():
            if count > 1:
                raise TaxonomyError(f"--taxonomy {self.name} has the class {name!r} {count} times; keep one")
            if _broken(name):
                raise TaxonomyError(
                    f"--taxonomy {self.name}: the class {name!r} holds half a surrogate pair; fix the JSON"
                )
            if not name.strip():
                raise TaxonomyError(f"--taxonomy {self.name} has a class without a name; give it one")
        for template in self.templates:
            if not any(slot in template for slot in _SLOTS):
                raise TaxonomyError(
                    f"--taxonomy {self.name}: the template {template!r} has no slot; write {{}} where the class goes"
                )
        if not self.templates and any(not c.prompts for c in self.classes):
            raise TaxonomyError(f"--taxonomy {self.name} has an empty list of templates; omit it or fill it")

    @property
    def class_names(self) -> list[str]:
        """The names of the classes, in order."""
        return [c.name for c in self.classes]

    @property
    def digest(self) -> str:
        """A hex SHA-256 over classes, aliases, prompts and templates; equal content gives equal digests."""
        content = [self.templates, [dataclasses.astuple(c) for c in self.classes]]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def prompts(self, of: TaxonomyClass) -> list[str]:
        """Return the texts whose embeddings make up a class, without duplicates."""
        words = [*(() if of.prompts else (of.name,)), *of.aliases]
        texts = [*of.prompts, *(_fill(template, word) for word in words for template in self.templates)]
        return list(dict.fromkeys(texts))

    @classmethod
    def load(cls, uri: storage.Place) -> Taxonomy:
        """Read a taxonomy from JSON with `classes` and `templates`, or from a .txt file with one class per line.

        The taxonomy is named after the file, without its extension. A CLIP_benchmark folder is a taxonomy too, named
        after the folder: it has `classnames.txt` and perhaps `zeroshot_classification_templates.txt`.

        Args:
            uri: the file or folder, as a text or a Path.
        Raises:
            TaxonomyError: if the file is missing, empty or malformed; the message says where.
        """
        uri = storage.as_uri(uri, "uri of the taxonomy")
        if storage.exists(storage.join(uri, CLASS_NAMES)):
            classes = tuple(TaxonomyClass(line) for line in _lines(_read(storage.join(uri, CLASS_NAMES))))
            own = storage.join(uri, _TEMPLATES)
            templates: tuple[str, ...] = (DEFAULT_TEMPLATE,)
            if storage.exists(own):
                templates = tuple(dict.fromkeys(_lines(_read(own))))
            return cls(posixpath.basename(storage.normalise(uri)), classes, templates)
        name, extension = posixpath.splitext(posixpath.basename(uri))
        if extension.lower() not in _EXTENSIONS and not storage.is_folder(uri):
            raise TaxonomyError(
                f"--taxonomy {uri} has the extension {extension}, but a taxonomy is a .txt file with a class on each "
                "line, a .json file, or a folder with classnames.txt; write the classes into a .txt file"
            )
        text = _read(uri)
        if extension.lower() != ".json":
            return cls(name, tuple(TaxonomyClass(line) for line in _lines(text)))
        try:
            content = json.loads(text)
        except RecursionError:
            raise TaxonomyError(
                f"--taxonomy {uri} is nested too deeply for a taxonomy; write a list of classes"
            ) from None
        except json.JSONDecodeError as error:
            raise TaxonomyError(
                f"--taxonomy {uri} is not JSON: {error.msg} at line {error.lineno}, column {error.colno}"
            ) from None
        except ValueError as error:  # a number with thousands of digits
            raise TaxonomyError(f"--taxonomy {uri} is not JSON: {error}") from None
        return cls.from_json(name, content)

    @classmethod
    def from_json(cls, name: str, content: object) -> Taxonomy:
        """Read `{"classes": [...], "templates": [...]}`; see `load`."""
        if not isinstance(content, dict) or not isinstance(content.get("classes"), list):
            raise TaxonomyError(
                f'--taxonomy {name} must be JSON of the form {{"classes": ["cat", …], "templates": […]}}'
            )
        if unknown := sorted(set(content) - {"classes", "templates"}):
            raise TaxonomyError(f"--taxonomy {name} has the field {unknown[0]!r}, but only classes and templates exist")
        templates = _texts(name, "templates", content.get("templates", [DEFAULT_TEMPLATE]))
        return cls(name, tuple(_class(name, entry) for entry in content["classes"]), templates)

    def to_json(self) -> dict:
        """The inverse of `from_json`."""
        return {"templates": list(self.templates), "classes": [dataclasses.asdict(c) for c in self.classes]}


Taxonomies = Taxonomy | storage.Place | Iterable[Taxonomy | storage.Place]


def as_taxonomies(taxonomies: Taxonomies) -> tuple[Taxonomy, ...]:
    """Return one or several taxonomies; those that are named by a text or a Path are read.

    Raises:
        ArgumentTypeError: if one is something else.
        TaxonomyError: if a file cannot be used.
    """
    given = storage.several(taxonomies, "taxonomies", f"{_TAXONOMY}, or several", one=(Taxonomy,))
    return tuple(
        value if isinstance(value, Taxonomy) else Taxonomy.load(storage.as_uri(value, name, _TAXONOMY))
        for name, value in given
    )


def check_names(taxonomies: Iterable[Taxonomy], columns: Mapping[str, str] | None = None) -> None:
    """Refuse two taxonomies with the same name, and one with the name of a column.

    In an expression such as `animals.label = 'cat'`, a taxonomy stands beside the columns.

    Args:
        taxonomies: the taxonomies.
        columns: names in lower case that columns of the embeddings take → that column.
    Raises:
        TaxonomyError: naming the taxonomy.
    """
    for name, count in Counter(t.name for t in taxonomies).items():
        if count > 1:
            raise TaxonomyError(f"--taxonomy {name} is given {count} times; the names of the files must differ")
        if column := (columns or {}).get(name.lower()):
            if column.lower() == name.lower():
                raise TaxonomyError(f"--taxonomy {name} has the name of a column of the dataset; rename the file")
            raise TaxonomyError(
                f"--taxonomy {name} has a column of labels {column}, as the dataset does; rename the file"
            )


def _read(uri: str) -> str:
    try:
        text = storage.read_bytes(uri).decode("utf-8-sig")
    except FileNotFoundError:
        raise TaxonomyError(f"--taxonomy {uri} does not exist; give the path of a .json or .txt file") from None
    except (IsADirectoryError, PermissionError) as error:
        raise TaxonomyError(f"--taxonomy {uri} cannot be read: {error.strerror}; give a .json or .txt file") from None
    except UnicodeDecodeError as error:
        raise TaxonomyError(f"--taxonomy {uri} is not UTF-8 at byte {error.start}; save it as UTF-8") from None
    if not text.strip():
        raise TaxonomyError(f"--taxonomy {uri} is empty; write one class per line, or JSON")
    return text


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


def _broken(text: str) -> bool:
    return any("\ud800" <= character <= "\udfff" for character in text)


def _fill(template: str, word: str) -> str:
    for slot in _SLOTS:
        template = template.replace(slot, word)
    return template


def _class(taxonomy: str, entry: object) -> TaxonomyClass:
    if isinstance(entry, str):
        return TaxonomyClass(entry)
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
        raise TaxonomyError(f'--taxonomy {taxonomy}: the class {entry!r} must be a string or {{"name": …}}')
    if unknown := sorted(set(entry) - {"name", "aliases", "prompts"}):
        raise TaxonomyError(f"--taxonomy {taxonomy}: class {entry['name']!r} has the unknown field {unknown[0]!r}")
    return TaxonomyClass(
        entry["name"],
        _texts(taxonomy, f"aliases of {entry['name']!r}", entry.get("aliases", [])),
        _texts(taxonomy, f"prompts of {entry['name']!r}", entry.get("prompts", [])),
    )


def _texts(taxonomy: str, what: str, value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise TaxonomyError(f"--taxonomy {taxonomy}: {what} must be a list of strings")
    return tuple(value)
