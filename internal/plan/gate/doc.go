// Package gate decides by requests whether a new revision of a service is as good as the stable one.
//
// It owns the tests: of the error rate, against a limit and against the stable revision, and of the 95th percentile of the latency, against
// a limit or a multiple of the stable revision's. It is asked again and again while requests come in, so a test of fixed size would find
// something in the end by looking often enough. Each test here is the mixture of likelihood ratios of Robbins, "Statistical Methods
// Related to the Law of the Iterated Logarithm" (1970), as Johari, Pekelis and Walsh use it for experiments on the web, "Always Valid
// Inference" (2017): under the null hypothesis the mixture is a supermartingale with mean 1 at most, so by Ville's inequality the chance
// that it ever reaches 1/Alpha, at whatever number of looks, is Alpha.
//
//	errors, limit    each request of the new revision fails with probability p; null: p ≤ limit
//	errors, stable   each failed request is of the new revision with a probability that follows from its share of the
//	                 requests of that interval; null: both revisions fail equally often
//	latency          each request of the new revision is slower than the bound with probability p; null: p ≤ 5 %. The bound is
//	                 an upper confidence bound of the stable revision's quantile, by order statistics, times the factor
//
// Invariants: a verdict is a function of what was added; without FewestRequests of the new revision there is none; a revision fails for its
// errors only if they are more than the limit and, where the stable revision had requests, more than that one's.
//
// It has no clock and starts nothing.
package gate
