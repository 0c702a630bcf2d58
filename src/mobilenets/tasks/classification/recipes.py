"""Recipes for classification, each with the command, the duration and the figure it reached."""

from __future__ import annotations

from mobilenets.training.recipe import (
    AugmentationChoice,
    FineTuningChoice,
    GrowthChoice,
    OptimizerChoice,
    Recipe,
    ScheduleChoice,
)

DIGITS = Recipe(
    name="digits",
    epochs=20,
    batch_size=32,
    optimizer=OptimizerChoice(name="sgd", lr=0.05, momentum=0.9, weight_decay=5e-4),
    schedule=ScheduleChoice(name="cosine", warmup=0.1),
    augmentation=AugmentationChoice(mirror=False, shift=0.125),
    expected="0.5-16-s4-shallow: 96.9 % of the held-out fifth, mean of four seeds (95.8 to 98.1; seed 0: 96.1)",
)
"""Handwritten digits: `mobilenets train digits --model 0.5-16-s4-shallow`, 40 s on 2 cores."""

ARTICLE = Recipe(
    name="article",
    epochs=100,
    batch_size=256,
    drop_last=True,
    optimizer=OptimizerChoice(name="adam", lr=1e-4, weight_decay=0.0),
    schedule=ScheduleChoice(name="constant", warmup=0.0),
    augmentation=AugmentationChoice(mirror=False),
    outputs=1000,
    dropout=0.0,
    expected="1.0-32 on 8,000 images of CIFAR-10 (JPEG), 15 epochs, seed 0: test top-1 21.1 %",
)
"""The practice that this project grew from, as it was: a much-read article's CIFAR-10 training, which
reached 71.99 % at best and overfitted from its first epoch. `mobilenets train cifar10 --model 1.0-32 --recipe
article`; on 8,000 images (`benchmarks/recipes.py`) 15 epochs took 7:27 on one busy core and reached 21.1 %, with the
validation loss rising after the tenth epoch.

Its faults, and the option that mends each:

- no augmentation: `augmentation.mirror=true augmentation.shift=0.125`
- no schedule, and a rate of 1e-4: `schedule.name=cosine optimizer.lr=0.003`
- no weight decay: `optimizer.name=adamw optimizer.weight_decay=0.05`
- 1,000 outputs for 10 classes, 1,014,750 surplus parameters: `outputs=null`
- strides for 224 pixels, so that 32 end at 1x1: `--model 1.0-32-s16`
- up to 255 images of each epoch left out: `drop_last=false`

What can't be switched back on: the loss divided by images that were left out, training and
validation loss under one tag, the test set as validation, no training accuracy, no best epoch, no
seed, CUDA hard-coded."""

PAPER = Recipe(
    name="paper",
    epochs=100,
    batch_size=64,
    optimizer=OptimizerChoice(
        name="rmsprop", lr=0.045, momentum=0.9, beta2=0.9, epsilon=1.0, weight_decay=4e-5
    ),
    schedule=ScheduleChoice(name="exponential", warmup=0.0, factor=0.94, every=2.5),
    augmentation=AugmentationChoice(mirror=True, min_area=0.5, colour=1.0),
    ema_decay=0.9999,
    expected="0.5-32-s16 on 8,000 images of CIFAR-10 (JPEG), 15 epochs, seed 0: test top-1 53.4 %",
)
"""As the paper trained (section 3.2), where it says how, and as its authors' public code and their later
paper fill in (TensorFlow-Slim's `mobilenet_v1_train.py`; Jacob et al. 2018, appendix D.2).

RMSprop as TensorFlow computes it, the rate down by 0.94 every 2.5 epochs, little augmentation, no
small crops, no label smoothing, no weight decay on depthwise filters, an average of the weights. The paper
trained in parallel and asynchronously; this is one synchronous process.

`mobilenets train photos --model 1.0-224 --recipe paper`; 0.5-32-s16 on 8,000 images of CIFAR-10 (JPEG), 15 epochs
(`benchmarks/recipes.py`): 53.4 % in 8:46 on one busy core."""

CIFAR = Recipe(
    name="cifar",
    epochs=30,
    batch_size=64,
    optimizer=OptimizerChoice(
        name="sgd", lr=0.2, momentum=0.9, weight_decay=5e-4, norm_bias_lr=8.0
    ),
    schedule=ScheduleChoice(name="linear", warmup=0.2),
    augmentation=AugmentationChoice(mirror=True, alternate=True, shift=0.125),
    growth=GrowthChoice(start=0.75, until=0.6),
    label_smoothing=0.1,
    dropout=0.0,
    dirac=True,
    whiten=True,
    ema_decay=0.999,
    expected="0.5-32-s16 on CIFAR-10 (JPEG), 5 minutes on one core in bf16, seed 0: val top-1 74.8 %",
)
"""Small images, from scratch: SGD with Nesterov momentum up and down in straight lines, shifts of an
eighth, images that grow from three quarters of their side, a start from the identity behind a first layer that
whitens, an average of the weights; batches of 64 keep the feature maps in the cache.

What transfers from airbench (github.com/KellerJordan/cifar10-airbench) is a switch each:
`augmentation.alternate` (each image mirrored every second epoch), `augmentation.shift` (edges
reflected), `augmentation.cutout`, `label_smoothing`, `optimizer.nesterov`, `optimizer.norm_bias_lr`
(64 there), `batch_norm_momentum` (0.4 there), `whiten`, `dirac`, `ema_decay`; evaluation with mirror
images is `mobilenets evaluate --mirror`. Not taken over: its own network, and the scaling
of outputs, which a classifier that starts at 0.01 does not need. docs/log.md says what each was worth.
"""

MODERN = Recipe(
    name="modern",
    epochs=100,
    batch_size=64,
    optimizer=OptimizerChoice(
        name="adamw", lr=2e-3, momentum=0.6, beta2=0.999, epsilon=1e-6, weight_decay=0.05
    ),
    schedule=ScheduleChoice(name="cosine", warmup=0.05),
    augmentation=AugmentationChoice(
        mirror=True, shift=0.125, min_area=0.35, randaugment=9, randaugment_share=0.5
    ),
    label_smoothing=0.1,
    dropout=0.1,
    ema_decay=0.9999,
    clip_norm=5.0,
    expected="0.5-32-s16 on 8,000 images of CIFAR-10 (JPEG), 15 epochs, seed 0: test top-1 48.8 %",
)
"""From scratch with what has been learnt since: AdamW with a low first beta, cosine, warm-up, averaged
weights, RandAugment, label smoothing; `augmentation.mixup=0.2` and `augmentation.cutmix=1.0` are
options for long runs.

Modelled on the public MobileNetV4 configuration (TensorFlow Model Garden,
`imagenet_mobilenetv4_conv_small_tpu.yaml`), which timm adapted to bring MobileNet V1 to 75.4 % of
ImageNet; weight decay and dropout are set for runs of a hundred epochs instead of thousands.

`mobilenets train photos --model 0.5-160`; 0.5-32-s16 on 8,000 images of CIFAR-10 (JPEG), 15 epochs
(`benchmarks/recipes.py`): 48.8 % in 8:32 on one busy core. It is made for long runs, and behind the others in short
ones."""

FINETUNE = Recipe(
    name="finetune",
    epochs=20,
    batch_size=32,
    optimizer=OptimizerChoice(name="adamw", lr=3e-4, weight_decay=0.02),
    schedule=ScheduleChoice(name="cosine", warmup=0.1),
    augmentation=AugmentationChoice(mirror=True, shift=0.06, min_area=0.5),
    fine_tuning=FineTuningChoice(probe=True, thaw=0.3, rate_decay=0.85, norm="kept"),
    label_smoothing=0.1,
    batch_norm_momentum=0.05,
    ema_decay=0.999,
    clip_norm=5.0,
    expected="1.0-224 from coral/1.0-224 to hymenoptera, 8 epochs, seed 0: val top-1 95.4 %",
)
"""From trained weights (`--weights`) to new classes: the classifier is fitted first, then a small rate, smaller for
earlier blocks, which join from the last to the first; batch norm keeps its statistics; mild crops, averaged
weights.

`mobilenets train photos --weights keras/1.0-224`; from ImageNet (`coral/1.0-224`) to 244 photos of ants and bees, 8 epochs
(`benchmarks/fine_tuning.py`): 95.4 % in 4:30 on two busy cores, where the fitted classifier alone has 94.8 %."""

PROBE = Recipe(
    name="probe",
    epochs=0,
    batch_size=32,
    augmentation=AugmentationChoice(mirror=True),
    fine_tuning=FineTuningChoice(probe=True, thaw=None),
    expected="1.0-224 from coral/1.0-224 to hymenoptera: val top-1 94.8 %",
)
"""From trained weights to new classes in seconds: the classifier fitted to the features of the body, which
stays as it is.

`mobilenets train photos --weights keras/1.0-224 --recipe probe`; from ImageNet (`coral/1.0-224`) to 244 photos of ants
and bees (`benchmarks/fine_tuning.py`): 94.8 % in 29 s on two cores."""

RECIPES = {
    recipe.name: recipe for recipe in (DIGITS, ARTICLE, PAPER, CIFAR, MODERN, FINETUNE, PROBE)
}
