"""DeepID on a folder of faces, a sub-folder a person (Sun, Wang, Tang, CVPR 2014): the softmax over all identities.

`--data.path` names the folder. A tenth of the people is held out and verified (folds of two people at least: with
fewer than 200 people, `--metrics.0.folds`); `evaluate.py RUN pairs_file --pairs pairs.txt --folder lfw` verifies pairs
listed as LFW lists them.
"""

from dataclasses import replace

from data.folders import ImageFolder
from losses.identification import Identification
from losses.margin_softmax import Softmax
from metrics.embeddings import Verification
from models.deepid import DeepID
from models.embedder import Embedder
from training.experiment import Checkpoints, Experiment
from training.optimizer import Optimizer

experiment = Experiment(
    data=ImageFolder(path="faces", size=40, open_set=True, flip=True),
    model=Embedder(net=DeepID()),
    loss=Identification(margin=Softmax()),
    metrics=(Verification(),),
    optimizer=Optimizer(method="sgd", learning_rate=0.05, warmup=500, decay="cosine", weight_decay=5e-4),
    steps=50_000,
    batch_size=128,
    checkpoints=Checkpoints(every=2000),
)

tiny = replace(experiment, metrics=(), steps=4, batch_size=16, log_every=2)
