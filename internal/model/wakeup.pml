// SPDX-License-Identifier: Apache-2.0
/*
 * How kernel and reader agree on when the reader may wait: bpf_ringbuf_reserve() and
 * bpf_ringbuf_commit() of the kernel, ringbuf_process_ring() of libbpf, and what has the
 * same name here in ringbuf_cgo.c, ringbuf_cgo.go and moderate.go. model_test.go has spin
 * try all orders in which their steps can follow each other. A step is one access to
 * memory that they share.
 *
 * All records are as large, and positions count records. Not modelled: deadlines, Flush
 * and Close (no wait ends by itself), BPF_RB_NO_WAKEUP and BPF_RB_FORCE_WAKEUP, corrupt
 * positions, samples that are spilled, records that take more than an eighth of the ring.
 */

#ifndef EAGER
#define EAGER false /* it never ticks */
#endif
#ifndef BLOCKED
#define BLOCKED false /* it waits in this way only */
#endif
#ifndef PARKED
#define PARKED false /* it waits in this way only */
#endif
#ifndef LIMIT
#define LIMIT 2 /* samples in a full batch */
#endif
#ifndef SLOTS
#define SLOTS 3 /* of the ring */
#endif
#ifndef RECORDS
#define RECORDS 3 /* that two programs reserve at most */
#endif

#define AT(position) ((position) % SLOTS)

/* What the test breaks, to see that it would be noticed. */
#define FENCE (cons == pos)
#define MOVED (samples == 0 && pos != start)
#define LEAVES(position) (position < produced && header[AT(position)] != busy)
#define NOTIFIES(consumer, position) (AT(consumer) == AT(position))
#ifdef NO_FENCE
#undef FENCE
#define FENCE true
#elif defined(FENCE_ONCE)
#undef FENCE
#define FENCE (moved > 0 || cons == pos)
#elif defined(WAIT_AFTER_MOVE)
#undef MOVED
#define MOVED false
#elif defined(LEAVE_NONE)
#undef LEAVES
#define LEAVES(position) true
#elif defined(LEAVE_BUSY)
#undef LEAVES
#define LEAVES(position) (position < produced)
#elif defined(NOTIFY_LATE)
#undef NOTIFIES
#define NOTIFIES(consumer, position) (AT(consumer) == AT(position + 1))
#endif

mtype = { busy, sample, discarded };

/* Memory that kernel and reader share. */
byte cons, prod;
mtype header[SLOTS];
byte content[SLOTS]; /* of a sample: its own position */

/*
 * The reader's processor keeps stores back in order, as x86 processors do (total store
 * order). All that the reader stores is the consumer position, and each time it is one
 * more. So its store buffer holds the positions behind cons, up to pos, and pos is what
 * the reader itself loads. To wait until it is empty is a full fence; release and acquire
 * are nothing. System calls are not taken for fences either. The programs need no buffer:
 * between the stores of a reservation and the xchg() of its commit they load nothing, so
 * that stores that come late are the same as a program that is late.
 */
byte pos;

active proctype store_buffer() {
end:	do
	:: atomic { cons < pos -> cons++; printf("consumer position %d becomes visible\n", cons) }
	od
}

/*
 * A notification is an irq_work, which comes some time later. It puts libbpf's epoll item
 * on a list, where it stays until somebody polls it and finds the ring empty, as ppoll,
 * arming and the netpoller do (ringbuf_map_poll_kern() in kernel/bpf/ringbuf.c,
 * __ep_eventpoll_poll() in fs/eventpoll.c). To end a wait in ppoll takes both, the item on
 * the list and a ring that is not empty: what the kernel does not notify of is not seen.
 *
 * The netpoller is told of notifications only while armed, once of each (EPOLLET), and
 * looks then whether the ring is empty. What was on the list before is not counted on.
 */
bool irq, listed, armed, ready;

active proctype notification() {
end:	do
	:: atomic {
		irq -> irq = false; listed = true; ready = ready || (armed && cons != prod);
		printf("the notification comes\n")
	   }
	:: atomic { listed && cons == prod -> listed = false }
	od
}

byte left; /* the position behind the one where a tick left a record, until the next drain */
bool lost_wakeup, lost_sample, not_silent;

/* A BPF program. */
active [2] proctype program() {
	byte mine, before, seen;

end:	do
	/*
	 * __bpf_ringbuf_reserve(), under the ring's lock. Nobody looks at the header before
	 * the producer position is stored, so this is one step. When the ring is full, the
	 * program tries again.
	 */
	:: atomic {
		prod < RECORDS && prod - cons < SLOTS ->
		mine = prod; header[AT(mine)] = busy; content[AT(mine)] = mine;
		prod++; printf("program %d reserves record %d\n", _pid - 1, mine)
	   }
	   /* bpf_ringbuf_commit(), if ever */
#ifdef LOOK_EARLY
	   seen = cons;
#endif
	   atomic {
		if
		:: header[AT(mine)] = sample; printf("program %d submits record %d\n", _pid - 1, mine)
		:: header[AT(mine)] = discarded; printf("program %d discards record %d\n", _pid - 1, mine)
		:: break
		fi;
		before = left
	   }
	   atomic {
#ifndef LOOK_EARLY
		seen = cons;
#endif
		if
		:: NOTIFIES(seen, mine) ->
			irq = true; printf("program %d sees consumer position %d and notifies\n", _pid - 1, seen);
			/* It was not there yet when the tick left another. */
			not_silent = before != 0 && before == left;
			assert(!not_silent)
		:: else -> printf("program %d sees consumer position %d and does not notify\n", _pid - 1, seen)
		fi;
		mine = 0; before = 0; seen = 0
	   }
	od
}

inline leaves_one(from) {
	next = from; leaves = false;
	do
	:: atomic {
		next < produced -> found = header[AT(next)]; next++;
		if
		:: found == busy -> break
		:: found == discarded
		:: found == sample -> leaves = true; break
		fi
	   }
	:: next >= produced -> break
	od;
	if :: leaves -> leaves = LEAVES(next) :: else fi
}

inline take_sample() {
	atomic {
		if :: at + 1 > produced -> produced = prod :: else fi;
		lost_sample = content[AT(at)] != at;
		assert(!lost_sample);
		samples++; is_full = (samples >= LIMIT); stop = is_full
	}
	if :: leave && !is_full -> leaves_one(at + 1); stop = !leaves :: else fi
}

/* ringbuf_process_ring() */
inline ring_buffer__consume() {
	do
	:: atomic { more && !stop -> more = false; end = prod }
	   do
	   :: atomic {
		pos < end && !stop ->
		found = header[AT(pos)]; printf("reader finds record %d %e\n", pos, found);
		more = (found != busy); stop = (found == busy)
	      }
	      if
	      :: found == sample ->
		at = pos;
#ifdef STORE_EARLY
		pos++; take_sample()
#else
		take_sample(); pos++
#endif
	      :: found == discarded -> pos++
	      :: found == busy
	      fi
	   :: pos == end || stop -> break
	   od
	:: !more || stop -> break
	od
}

inline drain() {
	do
	:: atomic {
		FENCE -> left = 0; start = pos; produced = prod;
		leaves = true; more = true; stop = false
	   }
	   if :: leave -> leaves_one(start) :: else fi;
	   if
	   :: leaves -> ring_buffer__consume()
	   :: else -> break
	   fi;
	   atomic {
		produced = prod; moved = moved + pos - start;
		if
		:: MOVED && moved <= SLOTS
		:: else ->
			is_full = is_full || MOVED;
			behind_busy = (samples == 0 && pos != produced);
			break
		fi
	   }
	od
}

/* note() of a moderator that cannot be foreseen */
inline note() {
	atomic {
		gathered = gathered || moved > 0;
		if
		:: is_full
		:: !is_full -> ticking = false; gathered = false
		:: !EAGER && !is_full && (ticking && !idle || !ticking && gathered) ->
			ticking = true; gathered = false
		fi
	}
}

inline begin() { d_step { samples = 0; moved = 0; is_full = false; behind_busy = false; idle = false } }

/* Nobody does anything any more, and the reader waits. */
inline rest() {
	atomic {
		timeout -> printf("nothing will happen any more\n");
		lost_wakeup = (cons != prod && header[AT(cons)] != busy);
		assert(!lost_wakeup);
		goto over
	}
}

inline cgo_ringbuf_poll() {
	begin(); drain();
	if
	:: blocks && samples == 0 && !behind_busy && !is_full ->
		printf("reader blocks\n");
		if
		:: listed && cons != prod
		:: rest()
		fi;
		drain()
	:: else
	fi;
	note()
}

inline cgo_ringbuf_tick() {
	begin(); was = produced;
	leave = true; drain(); leave = false;
	if
	:: samples > 0 -> atomic { left = pos + 1; printf("reader leaves record %d\n", pos) }
	:: else -> idle = (produced == was); drain()
	fi;
	note()
}

inline waitParked() {
	blocks = false;
#ifndef ARM_LATE
	atomic { armed = true; printf("reader arms\n") }
#endif
	ready = false; /* RawRead resets it before it calls onReady */
	do
	:: cgo_ringbuf_poll();
	   if :: samples > 0 || is_full -> break :: else fi;
#ifdef ARM_LATE
	   atomic { armed = true; printf("reader arms\n") }
#endif
	   printf("reader parks\n");
	   if
	   :: ready -> ready = false
	   :: rest()
	   fi
	od;
	armed = false
}

inline fillOrWait() {
	if
	:: !PARKED -> blocks = true
	:: !BLOCKED -> blocks = false
	fi;
	cgo_ringbuf_poll();
	if :: samples == 0 && !is_full && (!blocks || behind_busy) -> waitParked() :: else fi
}

active proctype reader() {
	bool leave, leaves, more, stop, is_full, behind_busy, idle, blocks, ticking, gathered;
	byte next, produced, was, end, at, start, moved, samples;
	mtype found;

	do
	:: ticking -> cgo_ringbuf_tick()
	:: fillOrWait() /* ticking too, when as many threads are blocked as may be */
	od;
over:	skip
}
