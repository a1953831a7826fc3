import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardCopyOption;
import java.util.HashMap;
import java.util.Map;
import java.util.concurrent.atomic.AtomicLong;

/** Threads that fill and check maps so that the collector and the compiler have work. */
public class Churn {
    static final AtomicLong DONE = new AtomicLong();

    static void fail(String text) {
        try {
            Files.writeString(Path.of("failed"), text);
        } catch (Exception e) {
            e.printStackTrace();
        }
        Runtime.getRuntime().halt(1);
    }

    static void churn(int seed) {
        for (int round = seed; ; round++) {
            Map<Integer, long[]> map = new HashMap<>();
            for (int i = 0; i < 2000; i++) {
                map.put(i, new long[] {i, (long) i * round, round});
            }
            long sum = 0;
            for (int i = 0; i < 2000; i++) {
                long[] row = map.get(i);
                if (row[0] != i || row[1] != (long) i * round || row[2] != round) {
                    fail("row " + i + " of round " + round);
                }
                sum += row[0];
            }
            if (sum != 2000L * 1999 / 2) {
                fail("sum " + sum);
            }
            DONE.incrementAndGet();
        }
    }

    static void guarded(int seed) {
        try {
            churn(seed);
        } catch (Throwable e) {
            fail(e.toString());
        }
    }

    public static void main(String[] args) throws Exception {
        for (int i = 0; i < 4; i++) {
            final int seed = i * 1000;
            Thread thread = new Thread(() -> guarded(seed));
            thread.setDaemon(true);
            thread.start();
        }
        Path fresh = Path.of(".beat"), beat = Path.of("beat");
        for (long n = 1; ; n++) {
            Thread.sleep(10);
            if (n > 1000 && DONE.get() == 0) {
                fail("the threads stand still");
            }
            Files.writeString(fresh, Long.toString(n));
            Files.move(fresh, beat, StandardCopyOption.ATOMIC_MOVE);
        }
    }
}
