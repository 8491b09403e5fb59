"""What a study on several data sets shows: effects by data set, their mean and their spread, ranks, and normalized scores."""
