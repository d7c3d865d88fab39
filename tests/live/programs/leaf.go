// A function that calls no other, and therefore has no frame, under two callers with known shares.
package main

//go:noinline
func leaf(values *[64]uint64, rounds int) uint64 {
	sum := uint64(0)
	for i := 0; i < rounds; i++ {
		sum = sum*6364136223846793005 + values[i&63]
	}
	return sum
}

//go:noinline
func often(values *[64]uint64) uint64 { return leaf(values, 300_000) + 1 }

//go:noinline
func seldom(values *[64]uint64) uint64 { return leaf(values, 100_000) + 2 }

//go:noinline
func run(values *[64]uint64) uint64 { return often(values) + seldom(values) }

func main() {
	values := new([64]uint64)
	for {
		values[0] += run(values)
	}
}
