// Goroutines that build, pass on and check lists while the collector runs.
package main

import (
	"fmt"
	"os"
	"runtime"
	"sync/atomic"
	"time"
)

type node struct {
	value int
	next  *node
}

func fail(format string, args ...interface{}) {
	os.WriteFile("failed", []byte(fmt.Sprintf(format, args...)), 0o644)
	os.Exit(1)
}

func build(n, from int) *node {
	var head *node
	for i := n - 1; i >= 0; i-- {
		head = &node{from + i, head}
	}
	return head
}

func worker(in, out chan *node, done *int64) {
	for list := range in {
		from, n := list.value, 0
		for at := list; at != nil; at = at.next {
			if at.value != from+n {
				fail("node %d of %d holds %d", n, from, at.value)
			}
			n++
		}
		if n != 2000 {
			fail("a list of %d nodes", n)
		}
		atomic.AddInt64(done, 1)
		out <- build(2000, from+1)
	}
}

func main() {
	var done int64
	const ring = 16
	channels := make([]chan *node, ring)
	for i := range channels {
		channels[i] = make(chan *node, 2)
	}
	for i := range channels {
		go worker(channels[i], channels[(i+1)%ring], &done)
	}
	for i := range channels {
		channels[i] <- build(2000, i*1000000)
	}
	kept := map[int]*node{}
	for beat := 1; ; beat++ {
		start := time.Now()
		time.Sleep(10 * time.Millisecond)
		if time.Since(start) < 10*time.Millisecond {
			fail("a sleep ended early")
		}
		kept[beat%100] = build(500, beat)
		if old := kept[(beat+1)%100]; old != nil && old.next.value != old.value+1 {
			fail("a kept list changed")
		}
		if beat%20 == 0 {
			runtime.GC()
		}
		if atomic.LoadInt64(&done) == 0 && beat > 500 {
			fail("the ring stands still")
		}
		if os.WriteFile(".beat", []byte(fmt.Sprint(beat)), 0o644) != nil || os.Rename(".beat", "beat") != nil {
			fail("cannot write")
		}
	}
}
