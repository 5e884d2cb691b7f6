"""The parts of the scripts in cifar/; each script is a command: its flags, its work, `main`.

    config, recipes        the flags of a run; a recipe's values for flags that are not given
    plan                   the flags of a study and its runs
    environment            device, backend, versions, commit
    archives, download     CIFAR's files: reading and fetching them
    datasets               the splits of CIFAR-10, CIFAR-100 or the digits
    batches                shuffled, cropped, mirrored and normalised on the device
    image_files            a CSV or PNG files, whose labels are to be predicted
    label_files            labels and probabilities, read and written
    model                  the ResNet, with fastnorm's norms, `builtin_norms` (torch's) or `rms`
    training, steps        a run, epoch by epoch; one optimizer step, eager or as a CUDA graph
    optimizers             a recipe's optimizer; the moving average of the weights
    world                  the processes that share a run
    checkpoints            reads a trained model from its file
    evaluation, probes     labels and their scores; features, rho and switch weights in training
    files                  the files of a run, each written whole or not at all
    progress, tensorboard  the display of a run while it lasts
    errors                 how a script ends

The scripts and reporting/ import these modules, never the other way round.
"""
