"""`worldloom index`: write the index of a data set anew."""

from __future__ import annotations

from cluster.leases import lease
from pipelines.commands._console import print_line
from pipelines.commands._options import Assignments, RecipeFile, read_recipe
from pipelines.commands.curate import TABLES
from pipelines.commands.verify import manifests_of
from training.data.index import index_uri
from training.data.index_writer import write_index


def command(recipe: RecipeFile, set_: Assignments = None) -> None:
    """Write the index beside each manifest, which training opens in place of all shards.

    Curation writes it, too: this is for data sets of earlier versions, and for shards or manifests that another program
    has changed.
    """
    settings = read_recipe(recipe, set_)
    with lease(settings.out_uri, TABLES):
        for uri in manifests_of(settings):
            write_index(uri)
            print_line(index_uri(uri))
