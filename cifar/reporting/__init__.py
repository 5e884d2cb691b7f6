"""The sections of report.py's page.

    study_files            a study's folder: its plan, runs and timings
    comparisons            which runs are compared, by the tests of `significance`
    speeds                 timings, grouped by the conditions that make them comparable
    in_short, overview     the first sentences; conditions, progress and cautions
    tables                 scores, tests, batch sizes, speeds
    figures                scores and speeds
    figures_errors         confusion matrices and misclassified images
    figures_inside         features, rho of BIN, weights of SN
    plot_style, wording    the look and the wording of all of them

A section's function raises Missing if the study has no data for it.
"""
