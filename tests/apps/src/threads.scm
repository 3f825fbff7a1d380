;; threads.scm - Guile: mutexes, condition variables, futures, and threads that allocate while
;; the Boehm collector stops them by signals. Prints `right`; a wrong answer is an error.
(use-modules (ice-9 threads) (ice-9 futures) (srfi srfi-1))

(define (expect what got wanted)
  (unless (equal? got wanted) (error what got wanted)))

(define (in-threads count work)
  (for-each join-thread
            (map (lambda (i) (call-with-new-thread (lambda () (work i)))) (iota count))))

(define lock (make-mutex))
(define changed (make-condition-variable))

(define count 0)
(in-threads 6 (lambda (i) (do ((k 0 (+ k 1))) ((= k 5000)) (with-mutex lock (set! count (+ count 1))))))
(expect "count" count 30000)

(define turn 0)
(define steps 0)
(in-threads 3
  (lambda (i)
    (do ((k 0 (+ k 1))) ((= k 500))
      (with-mutex lock
        (let again ()
          (unless (= turn i) (wait-condition-variable changed lock) (again)))
        (set! turn (modulo (+ turn 1) 3))
        (set! steps (+ steps 1))
        (broadcast-condition-variable changed)))))
(expect "turns" (list turn steps) '(0 1500))

(define (garbage seed) ; allocates much, keeps little
  (let loop ((k 0) (sum 0))
    (if (= k 300)
        sum
        (loop (+ k 1) (+ sum (apply + (map (lambda (x) (* x 2)) (iota 300))))))))
(define alone (garbage 0))
(expect "allocating threads" (delete-duplicates (par-map garbage (iota 16))) (list alone))
(par-for-each (lambda (i) (gc)) (iota 8))

(define (fib n) (if (< n 2) n (+ (fib (- n 1)) (fib (- n 2)))))
(define futures (map (lambda (i) (future (fib 18))) (iota 20)))
(expect "futures" (delete-duplicates (map touch futures)) '(2584))
(display "right\n")
