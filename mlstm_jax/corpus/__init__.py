"""Where bytes come from: readers of reviews, the packaged reviews, the corpus of shards, the stream of windows. numpy only."""
