"""A classifier of scikit-learn's 8x8 digits at every noise level of the rectified path, to guide digits_flow with.

`sample.py RUN --classifier THIS_RUN` (samplers/classifier_guidance.py). It draws nothing itself.
"""

from dataclasses import replace

from data.digits import Digits
from losses.classification import NoisyClassification
from metrics.accuracy import Accuracy
from models.classifier import ClassifierMLP, NoisyClassifier
from paths.schedules import Rectified
from training.experiment import Checkpoints, Experiment
from training.optimizer import Optimizer

experiment = Experiment(
    data=Digits(),
    model=NoisyClassifier(net=ClassifierMLP(width=256, depth=2, dropout=0.2), path=Rectified()),
    loss=NoisyClassification(),
    metrics=(Accuracy(),),
    optimizer=Optimizer(learning_rate=1e-3, warmup=50, decay="cosine"),
    steps=1500,
    batch_size=128,
    ema=0.995,
    checkpoints=Checkpoints(every=500),
)

tiny = replace(
    experiment,
    model=NoisyClassifier(net=ClassifierMLP(width=32, depth=2), path=Rectified()),
    steps=20,
    batch_size=32,
    log_every=5,
)
