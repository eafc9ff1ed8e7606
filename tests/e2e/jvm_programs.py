# ruff: noqa: E501 (a program in one line is easier to tell from its neighbours)
"""Programs whose output tells a JVM that was booted before its program was known from one that was started for it.

By language, name to text. What they print must not differ between any two plain runs. A compiled language has one source
for all: each program is a class of it, by its name.
"""

from __future__ import annotations

JAVA = """
import java.io.*; import java.lang.management.*; import java.nio.charset.*; import java.nio.file.*; import java.security.*; import java.util.*; import java.util.concurrent.*; import java.util.stream.*;
class Output { public static void main(String[] words) { System.out.println("out Wörld ✓"); System.err.println("err"); System.out.print("no end"); } }
class Arguments { public static void main(String... words) { System.out.println(words.length + Arrays.toString(words)); } }
class Variables { public static void main(String[] words) { System.out.println(new TreeMap<>(System.getenv()) + " " + System.getenv("GIVEN")); } }
class Input { public static void main(String[] words) throws Exception { System.in.transferTo(System.out); } }
class Scanned { public static void main(String[] words) { var in = new Scanner(System.in); while (in.hasNext()) System.out.println("<" + in.next() + ">"); } }
class Exits { public static void main(String[] words) { System.out.println("before"); System.exit(3); } }
class ExitsLarge { public static void main(String[] words) { System.exit(259); } }
class Halts { public static void main(String[] words) { Runtime.getRuntime().addShutdownHook(new Thread(() -> System.out.println("never"))); Runtime.getRuntime().halt(4); } }
class Hooks { public static void main(String[] words) { Runtime.getRuntime().addShutdownHook(new Thread(() -> System.out.println("hook"))); System.out.println("main"); } }
class HooksOfExit { public static void main(String[] words) { Runtime.getRuntime().addShutdownHook(new Thread(() -> System.out.println("hook"))); new Thread(() -> System.exit(5)).start(); } }
class Throws { static void inner() { throw new IllegalStateException("boom"); } public static void main(String[] words) { try { inner(); } catch (RuntimeException cause) { throw new RuntimeException("outer", cause); } } }
class ThrowsChecked { public static void main(String[] words) throws Exception { throw new Exception("boom Ü"); } }
class ThrowsInItself { static int n = 1 / 0; public static void main(String[] words) { System.out.println(n); } }
class ThrowsElsewhere { public static void main(String[] words) throws Exception { var thread = new Thread(() -> { throw new RuntimeException("elsewhere"); }); thread.start(); thread.join(); System.out.println("main goes on"); } }
class ThrowsAndGoesOn { public static void main(String[] words) { new Thread(() -> { try { Thread.sleep(50); } catch (InterruptedException e) { } System.out.println("the last"); }).start(); throw new RuntimeException("main is over"); } }
class Handled { public static void main(String[] words) { Thread.setDefaultUncaughtExceptionHandler((thread, error) -> System.out.println(thread.getName() + " " + error)); throw new RuntimeException("boom"); } }
class Stack { public static void main(String[] words) { for (var frame : Thread.currentThread().getStackTrace()) System.out.println(frame); StackWalker.getInstance().forEach(System.out::println); } }
class Deep { static int depth; static void go() { depth++; go(); } public static void main(String[] words) { try { go(); } catch (StackOverflowError error) { System.out.println(error + " " + (depth > 4000 && depth < 60000) + " " + error.getStackTrace().length); } } }
class Threads { public static void main(String[] words) throws Exception { var thread = new Thread(() -> {}); System.out.println(Thread.currentThread() + " " + Thread.currentThread().getPriority() + " " + thread.getName() + " " + thread.getThreadGroup().getParent()); System.out.println(Thread.getAllStackTraces().keySet().stream().map(Thread::getName).sorted().collect(Collectors.toList())); System.out.println(Thread.activeCount()); } }
class Outlives { public static void main(String[] words) { new Thread(() -> { for (int i = 0; i < 3; i++) System.out.println(i); }).start(); } }
class Daemon { public static void main(String[] words) { var thread = new Thread(() -> { while (true) { } }); thread.setDaemon(true); thread.start(); System.out.println("over"); } }
class Pool { public static void main(String[] words) throws Exception { var pool = Executors.newFixedThreadPool(2); System.out.println(pool.submit(() -> Thread.currentThread().getName()).get()); pool.shutdown(); System.out.println(IntStream.range(0, 1000).parallel().sum()); } }
class Interrupted { public static void main(String[] words) { Thread.currentThread().interrupt(); try { Thread.sleep(1000); } catch (InterruptedException error) { System.out.println(error); } } }
class Properties { public static void main(String[] words) { new TreeMap<>(System.getProperties()).forEach((name, value) -> { if (!"java.vm.compressedOopsMode sun.java.command".contains((String) name)) System.out.println(name + "=" + value); }); System.out.println(System.getProperty("sun.java.command")); } }
class Places { public static void main(String[] words) throws Exception { System.out.println(new File(".").getCanonicalPath() + " " + Path.of("").toAbsolutePath() + " " + new File(".").list().length + " " + File.createTempFile("x", "y").getParent()); System.out.println(Charset.defaultCharset() + " " + Locale.getDefault() + " " + TimeZone.getDefault().getID()); } }
class Command { public static void main(String[] words) throws Exception { var me = ProcessHandle.current(); System.out.println(me.info().command() + " " + me.pid() + " " + me.parent().map(ProcessHandle::pid)); System.out.println(ManagementFactory.getRuntimeMXBean().getInputArguments()); System.out.println(Files.readString(Path.of("/proc/self/environ")).replace("\\0", " ").trim()); } }
class Loaders { public static void main(String[] words) throws Exception { System.out.println(Loaders.class.getClassLoader().getClass() + " " + (Thread.currentThread().getContextClassLoader() == ClassLoader.getSystemClassLoader()) + " " + Loaders.class.getResource("Loaders.class") + " " + Loaders.class.getProtectionDomain().getCodeSource().getLocation() + " " + Class.forName("Output") + " " + Loaders.class.getModule()); try { Class.forName("Nothing"); } catch (ClassNotFoundException error) { System.out.println(error); } } }
class Children { public static void main(String[] words) throws Exception { var run = new ProcessBuilder("/bin/sh", "-c", "cat; env | sort; ls /proc/self/fd; exit 6").redirectErrorStream(true).start(); run.getOutputStream().write("given ".getBytes()); run.getOutputStream().close(); System.out.print(new String(run.getInputStream().readAllBytes())); System.out.println(run.waitFor()); } }
class Inherits { public static void main(String[] words) throws Exception { System.out.println(new ProcessBuilder("cat").inheritIO().start().waitFor()); } }
class Memory { public static void main(String[] words) { System.out.println(Runtime.getRuntime().maxMemory() + " " + Runtime.getRuntime().availableProcessors()); var all = new ArrayList<long[]>(); try { while (true) all.add(new long[1 << 20]); } catch (OutOfMemoryError error) { int n = all.size(); all = null; System.out.println(error + " " + n); } } }
class MemoryUncaught { public static void main(String[] words) { var all = new ArrayList<long[]>(); while (true) all.add(new long[1 << 20]); } }
class Large { public static void main(String[] words) { System.out.print("x".repeat(1_000_000)); } }
class Closes { public static void main(String[] words) { System.out.println("before"); System.out.close(); System.out.println("after"); System.err.println(System.out.checkError()); } }
class Files_ { public static void main(String[] words) throws Exception { Files.writeString(Path.of("made"), "text"); System.out.println(Files.readString(Path.of("/sandbox/made"))); } }
class Collector { public static void main(String[] words) { var bean = ManagementFactory.getGarbageCollectorMXBeans(); bean.forEach(each -> System.out.println(each.getName())); System.gc(); } }
class Preferred { public static void main(String[] words) { System.setErr(new PrintStream(System.out)); System.err.println("to out"); throw new RuntimeException("to out as well"); } }
class NoMain { }
class PrivateMain { private static void main(String[] words) { } }
class NotStatic { public void main(String[] words) { } }
class NotVoid { public static int main(String[] words) { return 1; } }
enum Constant { ONE; public static void main(String[] words) { System.out.println(ONE); } }
interface Default { static void main(String[] words) { System.out.println("an interface"); } }
class Base { public static void main(String[] words) { System.out.println("inherited"); } }
class Derived extends Base { }
class Random_ { public static void main(String[] words) { System.out.println(Math.random() + " " + new Random().nextLong() + " " + ThreadLocalRandom.current().nextLong() + " " + new SplittableRandom().nextLong() + " " + UUID.randomUUID() + " " + new SecureRandom().nextLong() + " " + ProcessHandle.current().info().startInstant() + System.nanoTime()); } }
"""

KOTLIN = """
object Output { @JvmStatic fun main(words: Array<String>) { println("out Wörld ✓ ${words.toList()}"); System.err.println("err") } }
object Input { @JvmStatic fun main(words: Array<String>) { generateSequence(::readLine).forEach { println("<$it>") } } }
object Throws { @JvmStatic fun main(words: Array<String>) { listOf(1).map { check(it > 1) { "boom" } } } }
object Uses { data class Point(val x: Int); @JvmStatic fun main(words: Array<String>) { println(Point(1)); println((1..9).filter { it % 2 == 0 }.groupBy { it > 4 }); println(Regex("a+").replace("caat", "o")) } }
"""

SCALA = """
object Output extends App { println(s"out Wörld ✓ ${args.toList}"); System.err.println("err") }
object Input extends App { io.Source.stdin.getLines.foreach(line => println("<" + line + ">")) }
object Throws extends App { List(1).map(n => require(n > 1, "boom")) }
object Uses extends App { case class Point(x: Int); println(Point(1)); println((1 to 9).filter(_ % 2 == 0).groupBy(_ > 4)); println("a+".r.replaceAllIn("caat", "o")) }
"""

GROOVY = {
    "output": 'println "out Wörld ✓"; System.err.println "err"; print "no end"',
    "arguments": "println args.length; args.each { println it }",
    "variables": 'println new TreeMap(System.getenv()); println System.getenv("GIVEN")',
    "input": "System.in.eachLine { println it }",
    "an error": 'def f() { throw new IllegalStateException("boom") }; f()',
    "an error with a cause": 'try { 1 / 0 } catch (e) { throw new RuntimeException("outer", e) }',
    "an assertion": "def x = [1, 2]; assert x.size() == 3",
    "a syntax error": "println (1",
    "a missing method": "nothing(1)",
    "a missing property": "println nothing",
    "an exit": "println 1; System.exit(3)",
    "classes": 'class A { def x = 1; String toString() { "A$x" } }; println new A(); println A.name; println this.class.name; println([1].collect { it }.class); def c = { 1 }; println c.class.name',
    "the class loader": "println this.class.classLoader.class; println Thread.currentThread().contextClassLoader.class; println this.class.protectionDomain.codeSource.location",
    "threads": "println Thread.currentThread().name; Thread.start { println Thread.currentThread().name }.join(); println Thread.allStackTraces.keySet()*.name.sort()",
    "places": 'println new File(".").canonicalPath; println new File(".").list().sort(); println System.getProperty("user.dir"); println System.getProperty("sun.java.command")',
    "properties": 'System.properties.sort().each { name, value -> println "$name=$value" }',
    "locale": "println Locale.default; println TimeZone.default.ID; println java.nio.charset.Charset.defaultCharset(); println String.format('%,.2f', 1234.5)",
    "children": 'println "sh -c env".execute().text.readLines().sort(); println(["sh", "-c", "ls /proc/self/fd"].execute().text)',
    "hooks": 'addShutdownHook { println "hook" }; println "main"',
    "binding": "println binding.variables.keySet()",
    "meta classes": "Integer.metaClass.twice = { delegate * 2 }; println 2.twice(); println String.metaClass.class",
    "text": 'println "${1 + 1} ${"x".toUpperCase()}"; println([a: 1, b: [1, 2.5, null]]); println((1..3).collect { it ** 2 }); println "a,b".tokenize(",")',
    "dates": "println new Date(0).class; println 1.5G.class; println 2.class",
    "evaluation": 'println Eval.me("1 + 1"); println new GroovyShell().evaluate("this.class.name")',
}

CLOJURE = {
    "output": '(println "out Wörld ✓") (binding [*out* *err*] (println "err")) (print "no end")',
    "arguments": "(println (count *command-line-args*) *command-line-args*)",
    "variables": '(println (into (sorted-map) (System/getenv)) (System/getenv "GIVEN"))',
    "input": "(doseq [line (line-seq (java.io.BufferedReader. *in*))] (println line))",
    "input by readers": "(println (read-line)) (println (slurp *in*))",
    "an error": '(defn f [] (throw (IllegalStateException. "boom"))) (f)',
    "an error with data": '(let [x 1] (throw (ex-info "boom" {:x x})))',
    "a syntax error": "(let [x 1] (println x)",
    "an unknown symbol": "(let [x 1] (println nothing))",
    "a wrong macro": "(let [x] x)",
    "an exit": "(println 1) (System/exit 3)",
    "namespaces": '(ns one.two (:require [clojure.string :as s])) (println *ns* (s/upper-case "x") (count (ns-publics \'user)) (count (ns-interns *ns*)))',
    "where it is": "(println *file* *ns* *compile-path* *clojure-version*) (println (:line (meta #'clojure.core/map)))",
    "definitions": "(defrecord P [x]) (println (->P 1) (class (->P 1))) (defprotocol Q (q [this])) (extend-type P Q (q [this] (:x this))) (println (q (->P 2)))",
    "names made up": "(defn f []) (println (gensym) (class f) (class (fn [])) `x#)",
    "names made up after a plain call": "(println 1) (println (gensym) (class (fn [])))",
    "state": "(def a (atom 0)) (dotimes [_ 3] (swap! a inc)) (println @a) (let [r (ref 1)] (dosync (alter r inc)) (println @r))",
    "agents": "(def a (agent 0)) (send a inc) (await a) (println @a) (shutdown-agents)",
    "futures": "(println @(future (+ 1 1))) (shutdown-agents)",
    "laziness": "(println (take 5 (iterate inc 1)) (reduce + (range 100)) (set [1 2 2]) {:a 1 :b 2})",
    "places": '(println (.getCanonicalPath (java.io.File. ".")) (System/getProperty "user.dir") (System/getProperty "sun.java.command"))',
    "locale": '(println (java.util.Locale/getDefault) (.getID (java.util.TimeZone/getDefault)) (format "%.2f" 1.5))',
    "the class loader": "(println (class (.getContextClassLoader (Thread/currentThread))) (.getName (Thread/currentThread)))",
    "children": '(require (quote [clojure.java.shell :as sh])) (println (:out (sh/sh "sh" "-c" "env | sort; ls /proc/self/fd"))) (shutdown-agents)',
    "hooks": '(.addShutdownHook (Runtime/getRuntime) (Thread. #(println "hook"))) (println "main")',
    "specifications": "(require '[clojure.spec.alpha :as s]) (s/def ::n int?) (println (s/valid? ::n 1) (s/explain-str ::n :x))",
}

SOURCES = {"java": JAVA, "kotlin": KOTLIN, "scala": SCALA}
SCRIPTS = {"groovy": GROOVY, "clojure": CLOJURE}

RANDOM = {
    "groovy": 'print "${Math.random()} ${new Random().nextLong()} ${UUID.randomUUID()} ${new java.security.SecureRandom().nextLong()}"',
    "clojure": "(print (rand) (rand-int 1000000000) (str (java.util.UUID/randomUUID)) (hash (rand)))",
}
