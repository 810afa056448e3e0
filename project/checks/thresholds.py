"""Every threshold of `make check`, with its reason. They decide what is said, never what is done to data or network."""

# Normalised values. Mean and standard deviation of what a network is made for are of the order of 1; min_max and
# percentiles of sparse images give a spread of some hundredths, long tails one of some units.
SPREAD_TINY = 0.01  # standard deviation; of 8-bit values divided by 65535 it is below 0.004
SPREAD_SMALL = 0.03  # the first layer then sees little but its own bias
SPREAD_LARGE = 15.0  # raw 8-bit images have 30 and more
LEVEL_FAR = 10.0  # mean; raw camera counts start at tens
SAME = 1e-3  # relative difference, of what ought to be equal but for rounding in float32
STATISTICS_OFF = 0.01  # in standard deviations: recomputed from the levels of all images, they agree to 1e-6

# Augmentation
SHUFFLE_DRAWS = 64  # samples per draw: were half of them flipped, all alike would be a chance of 2 ** -63
FOLDED = 0.35  # share of pixels that are mirrored border or folded: a third of the picture is not of the camera
ZOOMED = 6.0  # factor of area: objects are then 2.4 times as large, or small, as in validation
NOISE_EXCEEDS = 0.5  # squared correlation with the input before: below it, noise is more than half of what is seen
LEVEL_MOVED = 1.5  # standard deviations of the training images: another kind of image
CONTRAST_CHANGED = 3.0  # factor between the contrast before and after
CLIPPED = 0.05  # share of pixels that have become the smallest or largest value
EMPTY = 0.2  # share of training crops with one value everywhere: so many steps for nothing
NO_FOREGROUND = 0.8  # share of training crops without any class but the first; 0.5 is common and harmless

# Shuffling: neighbours in the file follow each other in a random order once in n times.
IN_ORDER = 0.5
# Share of neighbours of one class; a random order exceeds its expectation by so many standard errors once in 10 ** 9.
SORTED_SIGMA = 6.0
FEWEST_TO_JUDGE = 10  # samples below which no order or share is judged

# Alignment of input and target. A fault is told only if another hypothesis, chosen on one half of the samples,
# explains the other half better: on average by MARGIN in correlation, in CONSISTENT of the samples, and by so many
# standard errors. Targets that have nothing to do with the pixels of the input differ by chance, by less than that.
MARGIN = 0.1
CONSISTENT = 0.8
SIGMA = 5.0
OPTICS = 3  # pixels: chromatic aberration and phase contrast shift structures by 1 or 2
STRONG = 0.3  # correlation of a sample with its own target that is no chance, on maps of 48 x 48
SWAPPED = 0.1  # share of the samples that belong to another's target by far; by chance it is none in a hundred
RELATED = 0.2  # correlation in the file, above which it must survive cropping and augmentation
COMPARED = {"brief": 32, "full": 160}  # images that are compared with each other's targets
LOST = 0.4  # what must be left of it, as a share; rotations by interpolation keep more than 0.8

# Splits
MOST_COMPARED = {"brief": 2000, "full": 20000}  # signatures of images: 0.2 and 10 s on two cores
LEFT_OUT = 0.5  # share of an epoch that is dropped with the last incomplete batch

# Classes
RARE = 0.01  # share of the pixels: plain cross entropy may learn to leave such a class out (as `make inspect` says)
IMBALANCE = 10.0  # commonest to rarest label; at 3 `make inspect` suggests a cure, at 10 accuracy says nothing
IGNORED_SHARE = 0.9  # of the pixels: sparse annotation is known to work, with a tenth annotated
CONSTANT_TARGETS = 0.2  # share of the images: correlation is undefined there, and there is nothing to learn
SWAP_GAIN = 4.0  # the channels of validation fit those of training so many times better in another order
SWAP_FROM = 1.0  # and differ in their own order by as much, in standard deviations

# Network
FROZEN = 0.1  # share of the weights: positional encodings are fixed on purpose, but small
UNUSED = 0.01  # share of the weights without a gradient; heads that nobody asks for are smaller
EXPLODING = 1e4  # norm of the gradient: normalised data and usual losses give 0.01 to 100
UNREACHABLE = 0.02  # share of target pixels that the last activation cannot give; one in a hundred may be noise
FIRST_LOSS_HIGH = 4.0  # times that of a constant answer; random heads give 1 to 2, deep ones without norm up to 3
FIRST_LOSS_ABSURD = 100.0  # no initialisation does that: something has the wrong scale
FIRST_LOSS_LOW = 0.3  # without pretrained weights nothing can be known before training
RANGE_RATIO = 8.0  # spread of prediction and target after fitting one batch
RANGE_SHIFT = 2.0  # distance of their means, in spreads of the target

SMALL = {"brief": (2, 96), "full": (4, 128)}  # samples and their side in pixels: a step of a U-Net in a second

# Learning rate: found on one batch, a range of a factor of 10 is all that such a test can tell.
RATES = (1e-6, 10.0)
RATE_STEPS = 36  # about 5 per decade
RISES = 0.5  # of what was gained, lost again: the rate is too large
FALLS = 0.1  # of what can be gained: the first rate that learns anything
TOO_LOW = 100.0  # times below that rate; schedules and averages over many batches make up for a factor of 10
DIVERGED = 10.0  # times the first loss

# One batch that is repeated must be learnt by heart. Losses are measured against the better of the first one and of a
# constant answer; label smoothing alone leaves 0.3 of that.
FIT_STEPS = 100
FIT_ENOUGH = 0.4
FIT_WEAK = 0.8
FIT_FAILED = 0.95
FIT_FEWEST = 25  # steps, before a slow network is judged
SECONDS = {"rate": 9.0, "fit": 12.0}  # of the whole minute; larger networks take fewer steps

# Machine
MEMORY_TIGHT = 0.8  # of what is free: other programs need some too
DISK_TIGHT = 0.8
DAYS = 7.0  # a training that takes longer was hardly meant
