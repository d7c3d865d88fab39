// A hash in assembler that keeps data in the register of frame pointers, under two callers with known shares.
package main

import "crypto/md5"

//go:noinline
func often(bytes []byte) byte {
	sum := md5.Sum(bytes)
	return sum[0] + 1
}

//go:noinline
func seldom(bytes []byte) byte {
	sum := md5.Sum(bytes[:len(bytes)/3])
	return sum[0] + 2
}

func main() {
	bytes := make([]byte, 3<<20)
	for {
		bytes[0] += often(bytes) + seldom(bytes)
	}
}
