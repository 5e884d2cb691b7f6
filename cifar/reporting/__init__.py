"""The sections of report.py's page.

    study_files            a study's folder: its plan, runs and timings
    comparisons            which runs are compared with which, by the tests of `significance`
    speeds                 timings, grouped by what makes them comparable
    in_short, overview     the first sentences; conditions, progress and cautions
    tables                 scores, tests, batch sizes, speeds
    figures                scores and speeds
    figures_errors         confusion matrices and misclassified images
    figures_inside         features, rho of BIN, weights of SN
    plot_style, wording    how all of them look and speak

What makes a section raises Missing where the study has no data for it.
"""
