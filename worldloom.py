"""worldloom in Python: recipes, their tables, latents for a training loop of one's own, and sampling."""

from pipelines.commands.curate import Curated as Curated
from pipelines.commands.curate import curate as curate
from pipelines.commands.run import Outcome as Outcome
from pipelines.commands.run import run as run
from pipelines.commands.sample import sample_recipe as _sample_recipe
from pipelines.commands.train import train as train
from pipelines.curation import read_table as read_table
from pipelines.recipe import Recipe as Recipe
from pipelines.recipe import load_recipe as load_recipe
from training.data.manifest import read_manifest as read_manifest
from training.data.torch_dataset import LatentBatch as LatentBatch
from training.data.torch_dataset import LatentDataset as LatentDataset
from training.data.torch_dataset import latent_loader as latent_loader
from training.result import TrainResult as TrainResult
from training.sampling.exported_model import ExportedModel as ExportedModel
from training.sampling.mark_settings import MarkSettings as MarkSettings
from training.sampling.marks import save as save
from training.sampling.media import write_mp4 as write_mp4
from training.sampling.media import write_png as write_png
from training.sampling.media import write_video as write_video

sample = _sample_recipe
load_model = ExportedModel
