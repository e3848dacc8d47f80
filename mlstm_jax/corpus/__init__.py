"""Where bytes come from: readers of reviews, the packaged ones, the shards, the stream of batches. numpy only."""
