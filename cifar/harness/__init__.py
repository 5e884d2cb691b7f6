"""What the scripts in cifar/ are made of; each of those is a command: its flags, its work, `main`.

    config, recipes        the flags of a run; what its recipe decides where they leave it open
    plan                   the flags of a study and the runs that it consists of
    environment            device, backend, versions, commit
    archives, download     CIFAR's files: read, fetched
    datasets               the splits of CIFAR-10, CIFAR-100 or the digits
    batches                shuffled, cropped, mirrored and normalised on the device
    image_files            a CSV or PNG files, to predict the labels of
    label_files            labels and probabilities, read and written
    model                  the ResNet, with fastnorm's norms, `builtin_norms` (torch's) or `rms`
    training, steps        a run, epoch by epoch; one optimizer step, eager or as a CUDA graph
    optimizers             a recipe's optimizer; the moving average of the weights
    world                  the processes that share a run
    checkpoints            a trained model out of its file
    evaluation, probes     labels and their scores; features, rho and switch weights on the way
    files                  what a run leaves behind, each file whole or not at all
    progress, tensorboard  what a run shows while it lasts
    errors                 how a script ends

The scripts and reporting/ import these modules, never the other way round.
"""
