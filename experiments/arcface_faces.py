"""ArcFace's IR-50 on a folder of faces, a sub-folder a person (1801.07698 §3.1): 112x112, s = 64, m = 0.5. For a GPU.

`--data.path` names the folder. A tenth of the people is held out and verified (folds of two people at least: with
fewer than 200 people, `--metrics.0.folds`); `evaluate.py RUN pairs_file --pairs pairs.txt --folder lfw` verifies pairs
listed as LFW lists them.
With very many identities: `--model.class-axis data`, `--loss.sample 0.1`.
"""

from dataclasses import replace

from data.folders import ImageFolder
from losses.identification import Identification
from losses.margin_softmax import ArcFace
from metrics.embeddings import Verification
from models.embedder import Embedder
from models.resnet import IResNet
from training.experiment import Checkpoints, Experiment
from training.optimizer import Optimizer

experiment = Experiment(
    data=ImageFolder(path="faces", size=112, open_set=True, flip=True),
    model=Embedder(net=IResNet(depth=50)),
    loss=Identification(margin=ArcFace(scale=64.0, m=0.5)),
    metrics=(Verification(),),
    optimizer=Optimizer(method="sgd", learning_rate=0.1, warmup=2000, decay="cosine", weight_decay=5e-4),
    steps=180_000,
    batch_size=512,
    checkpoints=Checkpoints(every=5000),
)

tiny = replace(
    experiment,
    data=ImageFolder(path="faces", size=16, open_set=True, flip=True),
    model=Embedder(net=IResNet(depth=18, width=4, features=8)),
    metrics=(),
    steps=4,
    batch_size=16,
    log_every=2,
)
