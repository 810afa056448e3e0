"""Every threshold of the checks, with its reason. They decide what is reported, never what is done.

Where a threshold has two values, the first is for the quick checks before a training, the second for `make check`.
"""

# Normalized values. Networks are made for a mean and a standard deviation of about 1; min_max and percentiles of sparse
# images give a standard deviation of some hundredths, long tails one of some units.
STD_TINY = 0.01
STD_SMALL = 0.03  # the first layer then sees little but its own bias
STD_LARGE = 15.0  # raw 8-bit images have 30 and more
STD_HUGE = 150.0
MEAN_FAR = 10.0  # raw camera counts start at tens

# Augmentation
DRAWS = 64  # samples that are tried
FOLDED = 0.35  # share of pixels that are mirrored border or folded: a third of the image is not of the camera
ZOOMED = 6.0  # factor of area: objects are then 2.4 times as large, or small, as in validation
NOISE_EXCEEDS = 0.5  # squared correlation with the input before: below it, more than half of the input is noise
LEVEL_MOVED = 1.5  # standard deviations of the training images: another kind of image
CONTRAST_CHANGED = 3.0  # factor between the contrast before and after, or of two groups
EMPTY = 0.2  # share of training crops with one value everywhere: so many steps for nothing
NO_FOREGROUND = 0.8  # share of training crops without any class but the first; 0.5 is common and harmless

# Alignment. Another hypothesis must be better on average by MARGIN in correlation, in a share CONSISTENT of the
# samples, and by SIGMA standard errors. Unrelated targets differ by chance, by less than that.
COMPARED = (32, 160)  # images
FEWEST_SAMPLES = 10  # below which no order is judged
MARGIN = 0.1
CONSISTENT = 0.8
SIGMA = 5.0
OPTICS = 3  # pixels: chromatic aberration and phase contrast shift structures by 1 or 2
STRONG = 0.3  # correlation with a target that is no chance, on maps of 48 x 48
UNRELATED = 0.05  # correlation below which nothing is in common, if it is no higher than with targets of others
PERMUTED = 0.1  # share of the samples that belong to another's target; by chance it is below one in a hundred

IGNORED = 0.9  # share of the pixels of masks
LOOKED_AT = (12, 32)  # images whose pixels are looked at

# The input holds the target: share of the target's variance that the value of the input explains, pixel by pixel.
# Copies have 0.97 and more, the highest sound value was 0.48: a stain that is computed from the same photograph.
COPY_ACROSS = 0.9  # with one table for all images
COPY_WITHIN = 0.96  # with a table for each image
COPY_EXACT = 1e-3  # share that is not explained, below which nothing else can explain more: rounding
DEGRADED = 0.8  # of what is not explained, left by the pixels around: noise or blur is to be removed
FEW_VALUES = 16  # of an input that is a map of classes

# Pixels that no camera wrote
FILLED = {"target": 0.01, "image": 0.3}  # share of the pixels; black borders of an input do little harm
ISOLATED = 8.0  # distance of the filled value from all others, in distances between the values next to it
INSIDE = 0.01  # share of the pixels inside with the value of the border: above it, it is what a camera or stain gives
# Share of neighbors that differ by over three quarters of the range, and relative to those that differ by over half:
# 1e-4 and less in images of cells, 0.01 and 0.2 in drawings; 0.004 to 0.06 and 0.37 to 4 in wrapped ones.
WRAPPED, WRAPPED_RATIO = 0.002, 0.3
WRAPPED_INSIDE = 0.9  # share of the pixels that have neither the smallest nor the largest value
FEW_PIECES = 30  # borders, below which their distances are by chance multiples of a number
RING = 0.1  # share of a class that is a ring between two others
FEW_PIXELS = 100
PIECES = 0.2  # share of the objects; annotators leave a few stray pixels

# Groups
FEWEST_OF_GROUP = 3  # images, below which a group is not compared, and a class not counted
UNSEEN = 0.5  # share of the validation images unlike every training image: most of a validation is of another kind
COMPARED_LEVELS = 500  # validation images
MOST_PARTS = 200  # groups whose statistics are compared
MOST_GROUPS = 24  # whose pixels are compared
OF_GROUP = 6  # images of each
RELATED_SIGN = 0.15  # correlation of input and target whose sign is certain
SWAPPED_GAIN = 4.0  # the channels of validation fit those of training so many times better in another order
SWAPPED_FROM = 1.0  # and differ in their own order by as much, in standard deviations
SWAPPED_COLORS = 6.0  # the same of the differences between channels, in standard deviations between images
ANNOTATED = 0.9  # share of the masks elsewhere that hold more than one class
TIED = 0.8  # share of the images of a group that are of the class which is alone in it
GROUPS_OF_CLASS = 2  # with as few groups a class may be known by them; patients of one diagnosis are more
BY_CHANCE = 5e-3  # probability that all images of a class are in one group

# Data
MOST_COMPARED = (2000, 20000)  # images whose fingerprints are compared: 0.2 and 10 s on two cores
MOST_CONFIRMED = 100  # pairs of similar images whose pixels are compared
SIMILAR = 0.05  # share of the validation images with a near-duplicate in training: scores are then too good
CONTRADICTED = 0.02  # share of the images that are equal to one with another answer; some errors of labeling are usual
CONSTANT_IMAGES = 0.2  # share of the images: correlation is undefined there, and there is nothing to learn
FEWEST_VALIDATED = 5  # images; the metric of fewer changes by chance
# Numbers to predict: row numbers are distinct, with the gaps of those in test. 20 of 32 by chance: 1e-4.
NUMBERED, GAPS = 20, 1.6
FAR_OFF = 3.0  # distance of a code such as -999 from all other numbers, in their range
UNIT = 50.0  # factor between the numbers of a group and of all others
RARE = 0.01  # share of the pixels: plain cross entropy may learn to leave such a class out
IMBALANCE = 10.0  # commonest to rarest label: accuracy then says nothing
LOSSES_FOR_RARE_CLASSES = ("Dice", "Focal", "Tversky", "Jaccard", "Lovasz")

# Network
FROZEN = 0.1  # share of the weights: positional encodings are fixed on purpose, but small
UNUSED = 0.01  # share of the weights without a gradient; unused heads are smaller
MOSTLY_UNUSED = 0.5  # nobody means to train less than half of the network without freezing the rest
CLIPPED_AWAY = 0.005  # of the norm of the gradient; clipping is meant for the few that are far larger than the others
EXPLODING = 1e4  # norm of the gradient: normalized data and usual losses give 0.01 to 100
UNREACHABLE = 0.02  # share of target pixels outside the range of the last activation; one in a hundred may be noise
FIRST_LOSS_HIGH = 4.0  # times that of a constant answer; random heads give 1 to 2, deep ones without norm up to 3
FIRST_LOSS_ABSURD = 100.0  # no initialization does that: something has the wrong scale
OUTPUT_LARGE = 2.0  # root mean square; of smaller ones only the target is smaller, as with min_max
FIRST_LOSS_LOW = 0.3  # without pretrained weights nothing can be known before training
DROPOUT = 0.9
MIXED = 1e-3  # change of the output for another image of the batch, relative to that of its own
MISPLACED = 2.0  # change of the output in another quarter of the image, relative to the one that was changed
ADAPTIVE = ("Adam", "RMSprop", "Lion")  # optimizers whose steps are as large as the learning rate
STEP = 1.0  # in root mean squares of the weights; usual settings take 1e-3 to 0.1
DECAY = 0.01  # share of the weights that a step takes off; usual settings take 1e-7 to 1e-4

# Loss. What can be gained is the share by which a perfect prediction is better than a constant one: 1 for most losses,
# 0.7 with label smoothing of 0.1, 0.002 with 0.95.
SMOOTHING = 0.5  # more than half of each label is noise
NO_GAIN = 0.02
LITTLE_GAIN = (0.05, 0.65)  # of values, and of classes without label smoothing; softmax twice leaves 0.5

# Schedule, over a whole training. Cosines to 0 spend 6 % of it below 1 % of the peak, three steps of 10 up to 25 %.
SCHEDULE_STEPS = (20_000, 200_000)  # 0.2 and 2 s
LENGTH = 1.25  # factor between the length of a schedule and that of the training
ZERO_RATE = 0.15  # share of the training with a rate of 0
LOW_RATE = 0.4  # share of the training below 1 % of the peak
MEAN_RATE = 0.05  # of the peak
LATE_PEAK = 0.5  # share of the training before the peak; one cycle and warm-ups take 0.05 to 0.3
UNCHANGED = 0.98  # of the peak, as the lowest rate
UNTRAINED = 0.3  # share of the first weights in the average at the end
NEVER_REACHED = 0.3  # of the learning rate that was asked for

# Learning rate: on one batch, it is found to a factor of 10.
RATES = (1e-6, 1.0)  # higher ones fit only losses to which the scale of the output is nothing
RATE_STEPS = 30  # 5 per decade
RISES = 0.5  # of what was gained, lost again: the rate is too large
FALLS = 0.1  # of what can be gained: the first rate that learns anything
TOO_LOW = 30.0  # times below that rate; schedules and averages over many batches make up for a factor of 10
FAR_TOO_LOW = 300.0  # times below the rate that is suggested; fine-tuning takes 10 to 100 times less than training
DIVERGED = 10.0  # times the first loss

# One repeated batch must be memorized. Losses are between that of a constant answer (1) and the best possible one (0).
FIT_STEPS = 100
FIT_ENOUGH = 0.4
FIT_WEAK = 0.8
FIT_FAILED = 0.95
RANGE_RATIO = 8.0  # standard deviation of prediction and target after fitting one batch
RANGE_SHIFT = 2.0  # distance of their means, in standard deviations of the target
SECONDS = {"rate": 9.0, "fit": 12.0}  # of processor time; larger networks take fewer steps
