//! Collections of labelled vectors: the durable store, exact and approximate search, and the k-NN vote.
