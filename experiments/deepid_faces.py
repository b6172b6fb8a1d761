"""DeepID on a folder of faces, a sub-folder a person (Sun, Wang, Tang, CVPR 2014): the softmax over all identities.

`--data.path` names the folder; `evaluate.py RUN pairs_file --pairs pairs.txt --folder lfw` verifies LFW-style pairs.
"""

from dataclasses import replace

from data.folders import ImageFolder
from losses.identification import Identification
from losses.margin_softmax import Softmax
from models.deepid import DeepID
from models.embedder import Embedder
from training.experiment import Checkpoints, Experiment
from training.optimizer import Optimizer

experiment = Experiment(
    data=ImageFolder(path="faces", size=40, open_set=True, flip=True),
    model=Embedder(net=DeepID()),
    loss=Identification(margin=Softmax()),
    optimizer=Optimizer(method="sgd", learning_rate=0.05, warmup=500, decay="cosine", weight_decay=5e-4),
    steps=50_000,
    batch_size=128,
    checkpoints=Checkpoints(every=2000),
)

tiny = replace(experiment, steps=4, batch_size=16, log_every=2)
