// SPDX-License-Identifier: Apache-2.0
/*
 * How the kernel and the reader agree on when the reader may wait. The model has
 * bpf_ringbuf_reserve() and bpf_ringbuf_commit() of the kernel, ringbuf_process_ring() of
 * libbpf, and the code of this module in ring.go, fetch.go, wait.go, queue_loans.go,
 * ringbuf_cgo.c and ringbuf_cgo_wait.c. model_test.go has spin try all orders in which
 * their steps can follow each other. A step is one access to shared memory.
 *
 * All records have the same size, and positions count records. Not modelled: deadlines,
 * Flush and Close (no wait ends by itself), BPF_RB_NO_WAKEUP and BPF_RB_FORCE_WAKEUP,
 * corrupt positions, records that take more than an eighth of the ring, released leases.
 */

#ifndef EAGER
#define EAGER false /* the reader never ticks */
#endif
#ifndef BLOCKED
#define BLOCKED false /* the reader waits only in this way */
#endif
#ifndef PARKED
#define PARKED false /* the reader waits only in this way */
#endif
#ifndef LEASES
#define LEASES false /* the reader lends, and commits at any time; otherwise it copies */
#endif
#ifndef LIMIT
#define LIMIT 2 /* samples in a full batch */
#endif
#ifndef SLOTS
#define SLOTS 3 /* size of the ring */
#endif
#ifndef RECORDS
#define RECORDS 3 /* the most that two programs reserve */
#endif

#define AT(position) ((position) % SLOTS)

/* What the test breaks, to show that the model would notice. */
#define FENCE (cons == pos)
#define LEAVES(position) (position < produced && header[AT(position)] != busy)
#define NOTIFIES(consumer, position) (AT(consumer) == AT(position))
#define COMMITTED(consumer) (consumer < lent)
#ifdef NO_FENCE
#undef FENCE
#define FENCE true
#elif defined(LEAVE_NONE)
#undef LEAVES
#define LEAVES(position) true
#elif defined(LEAVE_BUSY)
#undef LEAVES
#define LEAVES(position) (position < produced)
#elif defined(NOTIFY_LATE)
#undef NOTIFIES
#define NOTIFIES(consumer, position) (AT(consumer) == AT(position + 1))
#elif defined(COMMIT_MORE)
#undef COMMITTED
#define COMMITTED(consumer) (consumer < lent || lent > 0 && consumer == lent && \
	consumer < prod && header[AT(consumer)] == sample)
#endif

mtype = { busy, sample, discarded };

/* Memory that the kernel and the reader share. */
byte cons, prod;
mtype header[SLOTS];
byte content[SLOTS]; /* of a sample: its own position */

/*
 * The reader's processor, or the one that commits, delays stores and keeps their order,
 * as x86 processors do (total store order). The reader stores only the consumer position,
 * and each time it is one more. So the store buffer holds the positions after cons, up to
 * pos, and the reader itself loads pos. A full fence waits until the buffer is empty.
 * Release and acquire do nothing. System calls do not count as fences either. The
 * programs need no buffer: they load nothing between the stores of a reservation and the
 * xchg() of its commit. So late stores are the same as a late program.
 */
byte pos;

active proctype store_buffer() {
end:	do
	:: atomic { cons < pos -> cons++; printf("consumer position %d becomes visible\n", cons) }
	od
}

/*
 * A notification is an irq_work, which runs some time later. It puts libbpf's epoll item
 * on a list. The item stays there until somebody polls it and finds the ring empty, as
 * ppoll, arming and the netpoller do (ringbuf_map_poll_kern() in kernel/bpf/ringbuf.c,
 * __ep_eventpoll_poll() in fs/eventpoll.c). A wait in ppoll ends only if the item is on
 * the list and the ring is not empty. So ppoll does not see records that the kernel does
 * not notify of.
 *
 * The netpoller gets notifications only while armed, each one once (EPOLLET), and then
 * checks whether the ring is empty. The model does not rely on items that were on the
 * list before.
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

byte left; /* the position after the record that a tick left, until the next drain */
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
			/* This record was not there yet when the tick left another one. */
			not_silent = before != 0 && before == left;
			assert(!not_silent)
		:: else -> printf("program %d sees consumer position %d and does not notify\n", _pid - 1, seen)
		fi;
		mine = 0; before = 0; seen = 0
	   }
	od
}

/*
 * Records between pos and lent are leased. libbpf consumes them in order when their
 * leases are committed. For looking and woken, see allConsumed() in wait.go.
 */
byte lent;
bool looking, woken;

inline consume() {
	atomic {
		lost_sample = (header[AT(pos)] == sample && content[AT(pos)] != pos);
		assert(!lost_sample);
	}
	pos++
}

active proctype holder() {
end:	do
	:: atomic { LEASES && COMMITTED(pos) -> printf("record %d is committed\n", pos) }
	   consume();
	   if
	   :: pos == lent ->
		FENCE;
		atomic {
			if
			:: looking && cons != prod && header[AT(pos)] != busy -> woken = true
			:: else
			fi
		}
	   :: else
	   fi
	od
}

/* look() of a ring: samples and discarded records from lent on, up to next. */
inline look() {
	atomic { produced = prod; next = lent; samples = 0; at = lent; more = false }
	do
	:: atomic {
		next < produced && !more -> found = header[AT(next)];
		if
		:: found == busy -> break
		:: found == discarded -> next++
		:: found == sample && samples == LIMIT -> more = true
		:: found == sample && samples < LIMIT -> next++; before = at; samples++; at = next
		fi
	   }
	:: next >= produced || more -> break
	od;
	atomic {
		/* Leave the newest sample, if it is the last record. */
		if
		:: leave && samples > 0 && !more -> if :: LEAVES(at) :: else -> samples--; at = before fi
		:: else
		fi;
		if :: samples == 0 && !leave -> at = next :: else fi
	}
}

/*
 * Takes what look() found. Lends it, or has libbpf consume it unless older records are
 * lent. Has libbpf consume discarded records that are alone.
 */
inline take() {
	if
	:: LEASES && samples > 0 -> lent = at; printf("reader lends up to %d\n", at)
	:: !lends && at > pos ->
		do
		:: pos < at ->
#ifdef STORE_EARLY
			pos++; atomic { lost_sample = (content[AT(pos - 1)] != pos - 1); assert(!lost_sample) }
#else
			consume()
#endif
		:: else -> break
		od;
		atomic { lent = pos; at = 0; moved = true }
	:: else
	fi
}

inline find(leaving) {
	leave = leaving; moved = false; look(); take()
}

/* note() of a moderator that decides arbitrarily */
inline note() {
	atomic {
		if
		:: ticking = false
		:: !EAGER && (samples > 0 || ticking) -> ticking = true
		fi
	}
}

/* Nobody takes another step, and the reader waits. */
inline rest() {
	atomic {
		timeout -> printf("nothing will happen any more\n");
		lost_wakeup = (cons != prod && header[AT(cons)] != busy);
		assert(!lost_wakeup);
		goto over
	}
}

/* state_of() the ring, after a fence */
inline ready_or_busy() {
	FENCE;
	atomic {
		is_ready = (pos != prod && header[AT(pos)] != busy);
		is_busy = (pos != prod && header[AT(pos)] == busy)
	}
#ifdef WAIT_UNCHECKED
	is_ready = false;
#endif
}

/* ring_buffer__poll(), which consumes up to the first sample. With leases, ppoll(). */
inline wait_blocked() {
	printf("reader blocks\n");
	if
	:: listed && cons != prod
	:: rest()
	fi;
	found = discarded;
	do
	:: !LEASES && pos != prod && found == discarded ->
		atomic { found = header[AT(pos)]; if :: found == busy -> break :: else fi }
		consume()
	:: else -> break
	od;
	atomic { if :: !LEASES -> lent = pos :: else fi }
}

inline wait_parked() {
#ifndef ARM_LATE
	atomic { armed = true; printf("reader arms\n") }
#endif
	ready = false;
	do
	:: ready_or_busy();
	   if :: is_ready -> break :: else fi;
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

/*
 * This wait ends at the latest when the timer expires. The reader may rely on that only
 * while records are lent.
 */
inline wait_lent() {
	atomic { armed = true; ready = false }
	if
#ifndef LEND_UNCHECKED
	:: cons == lent
#endif
	:: prod != produced
#ifdef LEND_UNCHECKED
	:: prod == produced ->
#else
	:: prod == produced && cons != lent ->
#endif
		if
		:: ready
		:: woken
		:: pos < lent
		:: rest()
		fi
	fi;
	armed = false
}

active proctype reader() {
	bool leave, more, ticking, lends, moved, is_ready, is_busy;
	byte next, produced, at, before, samples;
	mtype found;

	do
	:: atomic { lends = (pos < lent); left = 0; woken = false }
	   looking = lends;
	   if
	   :: ticking ->
		find(true);
		if
		:: samples > 0 && !more ->
			atomic { left = lent + 1; printf("reader leaves record %d\n", lent) }
		:: samples > 0 && more
		:: else -> find(false)
		fi;
		note()
	   :: /* also while ticking, when the most threads that may block are blocked */
		find(false);
		note();
		if
		:: samples > 0 || moved || more
		:: else ->
			if
			:: lends ->
				wait_lent()
			:: else ->
				ready_or_busy();
				if
				:: is_ready
				:: !is_ready && !is_busy && !PARKED -> wait_blocked()
				:: !is_ready && (is_busy || !BLOCKED) -> wait_parked()
				fi
			fi
		fi
	   fi;
	   atomic { looking = false; samples = 0; next = 0; at = 0; before = 0; produced = 0 }
	od;
over:	skip
}
